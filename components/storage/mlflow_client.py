"""Errors of MLflow's own S3 client, which moves artifacts where MLflow's server does not serve them, as errors of this project.

Promises: pure; the same table (`answers.py`) decides as for this project's client. Does not retry: MLflow's client has done so.
"""

from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError

from components.errors import BadInput, CelebditError, TrackingRefused, TrackingUnavailable
from components.storage import answers
from components.storage.call_errors import refusal_detail
from components.storage.faults import answer_to, describe_fault
from components.system.failures import was_raised_in

_ARTIFACTS = "object storage of MLflow's artifacts"


def artifact_store_error(error: Exception) -> CelebditError | None:
    """Return the error for people if a call of boto3's caused `error`, or None.

    BadInput where waiting does not help, TrackingRefused if an object is missing, TrackingUnavailable for the rest.
    """
    cause = next((cause for cause in _causes(error) if _is_of_boto3(cause)), None)
    if isinstance(cause, RecursionError):  # botocore (1.44) looks for the region by a request that is redirected, too
        return BadInput(f"{_ARTIFACTS} redirects without end", hint=answers.OTHER_SERVER.fix)
    answer = None if cause is None else answer_to(cause)
    if cause is None or answer is None:
        return None
    if answer.action == "wait":
        return TrackingUnavailable(f"{_ARTIFACTS} failed: {describe_fault(cause)}", hint=answer.fix)
    detail, fix = refusal_detail(answer, cause, "the bucket")
    kind = TrackingRefused if answer.action == "data" else BadInput
    called = f" {cause.operation_name}" if isinstance(cause, ClientError) else ""
    if answer is answers.NO_BUCKET:
        fix = "check the artifact root of MLflow's server (--default-artifact-root) and MLFLOW_S3_ENDPOINT_URL"
    return kind(f"{_ARTIFACTS} refuses{called}: {describe_fault(cause)}{f': {detail}' if detail else ''}", hint=fix or answer.fix)


def _causes(error: BaseException | None) -> Iterator[Exception]:
    """Yield an error, its cause, and so on; boto3 and MLflow wrap what they catch."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__


def _is_of_boto3(error: Exception) -> bool:
    if isinstance(error, RecursionError):
        return was_raised_in(error, "botocore")
    return isinstance(error, ClientError | BotoCoreError)
