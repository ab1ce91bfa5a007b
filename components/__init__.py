"""The steps of the pipeline, one folder each, and the doors to object storage, MLflow and the registry."""
