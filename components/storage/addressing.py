"""How a store is addressed, as the environment says it: region and style, for this project's client and MLflow's. Does not import boto3."""

import os

from components.storage.parameters import mlflow_upload_arguments

ADDRESSING = "AWS_S3_ADDRESSING_STYLE"


def region_of_environment() -> str | None:
    """Return the region that the environment names, or None where only a profile does, or nothing."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def mlflow_s3_environment() -> dict[str, str]:
    """Return the variables by which MLflow's own S3 client does as this one: region, addressing style, parameters of uploads."""
    values = {
        "AWS_DEFAULT_REGION": region_of_environment(),
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": os.environ.get(ADDRESSING),
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS": mlflow_upload_arguments(),
    }
    return {name: value for name, value in values.items() if value}
