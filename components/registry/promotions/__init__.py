"""Promotion of versions: the log that a registered model keeps of it, and how the aliases follow.

`moves` are the entries and what follows from them, `log` stores them as tags of the model, `state` is what was read of a model, `problems`
says where aliases and log disagree, `changes` makes a change that is complete or taken back, `records` shows the log, `old_logs` reads
those of earlier releases. Import modules, not this package: some of them import MLflow.
"""
