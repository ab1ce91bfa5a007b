"""What requests ask of the store besides their operation: server-side encryption, storage class, and that the requester pays.

Promises: every request of a client has them, whoever makes it, and MLflow's own uploads too (`mlflow_upload_arguments`). MLflow has no such
setting for its downloads.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from components.environment import S3_ENCRYPTION, S3_KMS_KEY_ID, S3_REQUEST_PAYER, S3_STORAGE_CLASS
from components.errors import BadInput, shorten
from components.settings import object_parameters

if TYPE_CHECKING:
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client

_AES, _KMS = "AES256", "aws:kms"
_ENCRYPTIONS = (_AES, _KMS, "aws:kms:dsse")
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_PAYER = "requester"


def request_parameters(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the parameters that the environment sets, as boto3 names them.

    Raises:
        BadInput: naming the first variable whose value cannot be used.
    """
    values = object_parameters(environ)
    key, encryption, storage_class = values.get(S3_KMS_KEY_ID), values.get(S3_ENCRYPTION), values.get(S3_STORAGE_CLASS)
    if encryption not in (None, *_ENCRYPTIONS):
        raise BadInput(
            f"{S3_ENCRYPTION} is {shorten(repr(encryption), max_characters=20)}", hint=f"set it to one of {', '.join(_ENCRYPTIONS)}"
        )
    if key and encryption == _AES:
        raise BadInput(f"{S3_KMS_KEY_ID} is set, and {S3_ENCRYPTION} is {_AES}", hint=f"set {S3_ENCRYPTION}={_KMS}, or unset one of them")
    if storage_class in _ARCHIVES:
        raise BadInput(f"{S3_STORAGE_CLASS} is {storage_class}: what is written there cannot be read at once", hint="set it to GLACIER_IR")
    if values.get(S3_REQUEST_PAYER) not in (None, _PAYER):
        raise BadInput(
            f"{S3_REQUEST_PAYER} is {shorten(repr(values[S3_REQUEST_PAYER]), max_characters=20)}", hint=f"set it to {_PAYER}, or unset it"
        )
    parameters = {
        "ServerSideEncryption": encryption or (_KMS if key else None),
        "SSEKMSKeyId": key,
        "StorageClass": storage_class,
        "RequestPayer": values.get(S3_REQUEST_PAYER),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def mlflow_upload_arguments() -> str | None:
    """Return the same parameters as the value of MLFLOW_S3_UPLOAD_EXTRA_ARGS, or None if there are none."""
    parameters = request_parameters()
    return json.dumps(parameters) if parameters else None


def add_parameters(client: "S3Client", parameters: Mapping[str, str]) -> None:
    """Add `parameters` to every request of `client` that takes them and has none of its own."""

    def add(params: dict[str, object], model: "OperationModel", **_: object) -> None:
        members = model.input_shape.members if model.input_shape is not None else {}
        for name, value in parameters.items():
            if name in members:
                params.setdefault(name, value)

    if parameters:
        client.meta.events.register("provide-client-params.s3", add)
