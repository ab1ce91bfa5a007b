"""The promotion log of a registered model in MLflow: one immutable entry per promotion and rollback.

Promises: an entry cannot be changed (MLflow refuses to change a parameter), and none is lost when several callers append at once. What
follows from the entries is in `promotions.py`.
"""

import logging

from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from components.registry.promotions import Move
from components.tracking.client import Tracking
from components.tracking.mlflow_errors import translate_mlflow_errors
from components.tracking.tags import TAG_KIND

TAG_MODEL = "celebdit.model"
_log = logging.getLogger(__name__)


class PromotionLog:
    """The log of the registered model `name`, kept as parameters of an MLflow run of its own."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self._tracking = tracking
        self._name = name
        self._identity = {TAG_KIND: "registry-log", TAG_MODEL: name}

    def model_created_ms(self) -> int | None:
        """Return when the registered model was made, or None if there is none."""
        with translate_mlflow_errors(self._tracking.settings.mlflow_uri):
            try:
                return int(self._tracking.client.get_registered_model(self._name).creation_timestamp)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def moves(self) -> list[Move]:
        """Return all entries about this model, oldest first; those about an earlier one of the same name stay in MLflow alone."""
        created_ms = self.model_created_ms()
        return [] if created_ms is None else [move for move in self._entries() if move.is_of_model(created_ms)]

    def _entries(self) -> list[Move]:
        entries: dict[str, str] = {}
        with translate_mlflow_errors(self._tracking.settings.mlflow_uri):
            # Callers that race for the first entry may each create a run; the entries of all count.
            for run in self._tracking.search_runs(self._identity):
                entries |= self._tracking.client.get_run(run.info.run_id).data.params
        moves = {entry_id: Move.parse(entry_id, text) for entry_id, text in entries.items()}
        if foreign := sorted(entry_id for entry_id, move in moves.items() if move is None):
            _log.warning("entries of the promotion log of %r that are no promotions are ignored: %s", self._name, ", ".join(foreign))
        return sorted((move for move in moves.values() if move is not None), key=lambda move: move.id)

    def append(self, move: Move) -> None:
        """Append an entry."""
        with translate_mlflow_errors(self._tracking.settings.mlflow_uri):
            self._tracking.client.log_batch(self._run_id(), params=[Param(move.id, move.text())], synchronous=True)

    def _run_id(self) -> str:
        run = self._tracking.find_run(self._identity)
        if run is None:
            run = self._tracking.client.create_run(
                self._tracking.experiment_id, tags=self._identity, run_name=f"promotions of {self._name}"
            )
            self._tracking.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)
