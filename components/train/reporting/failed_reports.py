"""What a training notes when its reports do not reach MLflow: an outage is waited for, a refusal needs an action."""

from components.errors import BadInput, Failure, StorageUnavailable
from components.system.failures import os_failure


def describe_failure(error: Exception, run_key: str, *, meanwhile: str = "training continues and uploads its metrics later") -> str:
    """Return the note for `error`, which kept a report of the training `run_key` from MLflow; an outage says what happens `meanwhile`."""
    failure = Failure.of(error)
    if isinstance(error, BadInput):  # what waiting does not help
        hint = "" if failure.hint is None else f": {failure.hint}"
        return f"{failure.message}; training continues and keeps its metrics, run `celebdit sync {run_key}` when MLflow accepts them{hint}"
    if isinstance(error, StorageUnavailable):
        return f"metrics of earlier attempts cannot be uploaded to MLflow yet; {meanwhile}: {failure.message}"
    if isinstance(error, OSError) and error.filename is not None and (local := os_failure(error)) is not None:
        return f"metrics cannot be uploaded to MLflow yet; {meanwhile}: {local.message}"
    return f"MLflow is unavailable; {meanwhile}: {error}"
