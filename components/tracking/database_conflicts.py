"""Writes that two callers make at the same moment, where MLflow looks for a row and then inserts it: its database refuses the second one.

MLflow 3.17 does so for parameters, datasets, aliases, metrics of the same millisecond, and the tags of models and versions, on SQLite and
PostgreSQL. Once the row exists, the same write succeeds, because MLflow finds it then.
"""

from collections.abc import Callable

from mlflow.exceptions import MlflowException

_TRIES = 3


def write_despite_conflicts(write: Callable[[], object]) -> None:
    """Run `write`, which may be repeated, until no other caller inserts the same row at that moment; three times at most.

    Raises:
        MlflowException: whatever else `write` raises, or the third conflict.
    """
    for _ in range(_TRIES - 1):
        try:
            write()
        except MlflowException as error:
            if not is_database_conflict(error):
                raise
        else:
            return
    write()


def is_database_conflict(error: BaseException | None) -> bool:
    """Return whether MLflow's database refused the second of two callers that made the same row at once."""
    return isinstance(error, MlflowException) and error.error_code == "BAD_REQUEST"
