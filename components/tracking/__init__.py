"""MLflow tracking: the client, the local journal in front of it and the journal's archive in object storage.

Empty on purpose: `journal` and `metric_points` are imported where MLflow, which takes seconds, must not be.
"""
