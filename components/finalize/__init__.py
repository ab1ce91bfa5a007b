"""The finalize step: the exit handler, which closes the MLflow runs and summarises the pipeline run."""
