"""The MLflow experiment of a name."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.errors import BadInput


def find_experiment(client: MlflowClient, name: str) -> str | None:
    """Return the id of the experiment `name`, or None if there is none.

    Raises:
        BadInput: if it was deleted, because a deleted one holds its name.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage != "active":
        raise _name_is_taken(name, experiment.experiment_id)
    return str(experiment.experiment_id)


def create_experiment(client: MlflowClient, name: str) -> str:
    """Create the experiment `name`, unless another process does in this moment, and return its id.

    Raises:
        BadInput: if a deleted one holds its name.
    """
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment_id = find_experiment(client, name)
    if experiment_id is None:
        raise _name_is_taken(name, "ID")
    return experiment_id


def _name_is_taken(name: str, number: str) -> BadInput:
    return BadInput(
        f"the MLflow experiment {name!r} was deleted, and its name is taken until it is removed for good",
        hint=f"mlflow experiments restore --experiment-id {number}, or set CELEBDIT_EXPERIMENT to another name",
    )
