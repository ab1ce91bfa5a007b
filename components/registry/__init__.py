"""Model registry: the MLflow registry client, the promotion log, its configuration and its webhook.

Empty on purpose: `registry.config` is imported where MLflow, which takes seconds, must not be.
"""
