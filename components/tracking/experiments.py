"""The MLflow experiment of a name."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.errors import BadInput


def find_or_create_experiment(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment `name`, which is created if there is none.

    Raises:
        BadInput: if it was deleted, because a deleted one holds its name.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process may create it in this moment
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        number = "ID" if experiment is None else experiment.experiment_id
        raise BadInput(
            f"the MLflow experiment {name!r} was deleted, and its name is taken until it is removed for good",
            hint=f"mlflow experiments restore --experiment-id {number}, or set CELEBDIT_EXPERIMENT to another name",
        )
    return str(experiment.experiment_id)
