"""The promotion log of a registered model in MLflow: tags of the model itself, one per move and one for its outcome.

Promises: whoever may not change the model cannot write the log; it is deleted with the model, and the same for every experiment and user.
No entry replaces another one: each has a key of its own. How a change is made of them is in `changes.py`, what follows from the
entries in `promotions.py`.
"""

import time
from contextlib import AbstractContextManager

from mlflow.exceptions import MlflowException

from components.errors import BadInput
from components.registry.promotions.moves import ENTRY_PREFIX, MAX_TEXT_CHARS, START_ID, Move, VersionIdentity, clean_name, utc
from components.registry.promotions.state import OUTCOME_SUFFIX, Outcome, RegistryState
from components.registry.tags import VersionTags
from components.system.user import user_name
from components.tracking.client import Tracking
from components.tracking.database_conflicts import write_despite_conflicts


class PromotionLog:
    """The log of the registered model `name`."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.name = name
        self._tracking = tracking
        self._client = tracking.client

    def _translate_errors(self) -> AbstractContextManager[None]:
        return self._tracking.translate_errors(model=self.name)

    def read(self) -> RegistryState | None:
        """Return the model's aliases, versions and log, or None if there is no such model."""
        with self._translate_errors():
            # Versions first: one that an alias or an entry names and that is not among them was deleted, not made meanwhile.
            versions = self._client.search_model_versions(f"name = '{self.name}'")
            try:
                model = self._client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        identities = {str(version.version): identity_of(version.tags, version.creation_timestamp) for version in versions}
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        return RegistryState.of_tags(self.name, int(model.creation_timestamp), aliases, identities, model.tags)

    @staticmethod
    def first_tags() -> dict[str, str]:
        """Return the tags of a model that is made now: it has nothing to take over from a log of an earlier release."""
        start = Move(START_ID, "start", None, "the model was created", clean_name(user_name()), utc(time.time()))
        return {f"{ENTRY_PREFIX}{START_ID}": start.text()}

    def append(self, move: Move) -> None:
        """Write an entry; the same entry may be written by several callers at once.

        Raises:
            BadInput: if this user may not change the model.
        """
        text = move.text()
        assert len(text) <= MAX_TEXT_CHARS, "reasons and names are bounded"
        self._set_tag(f"{ENTRY_PREFIX}{move.id}", text)

    def finish(self, move: Move, outcome: Outcome) -> None:
        """Write how a move ended."""
        self._set_tag(f"{ENTRY_PREFIX}{move.id}{OUTCOME_SUFFIX}", outcome)

    def retract(self, move: Move) -> None:
        """Remove an entry whose change was refused."""
        with self._translate_errors():
            self._client.delete_registered_model_tag(self.name, f"{ENTRY_PREFIX}{move.id}")

    def move_alias(self, alias: str, version: str | None) -> None:
        """Point an alias to a version, or remove it."""
        with self._translate_errors():
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
            else:
                write_despite_conflicts(lambda: self._client.set_registered_model_alias(self.name, alias, version))

    def _set_tag(self, key: str, value: str) -> None:
        with self._translate_errors():
            write_despite_conflicts(lambda: self._client.set_registered_model_tag(self.name, key, value))


def identity_of(tags: dict[str, str], created_ms: int | None) -> VersionIdentity:
    """Return what tells a version from another one of its number."""
    return VersionIdentity(VersionTags.from_mlflow(tags).checkpoint_digest, None if created_ms is None else int(created_ms))


def is_forbidden(error: BadInput) -> bool:
    """Return whether MLflow knows this user and does not allow it."""
    cause = error.__cause__
    # MLflow's client (3.17) keeps the status of an answer without JSON in its text alone.
    return isinstance(cause, MlflowException) and (cause.get_http_status_code() == 403 or "error code 403" in str(cause))
