"""Reporting of a training run: metrics and samples to the journal and to MLflow."""
