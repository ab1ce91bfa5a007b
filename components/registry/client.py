"""Model registry client: versions, aliases, and promotion of a version to champion.

Promises: one version per checkpoint and EMA, whatever the number of tries or racing callers. How `champion` and `previous` are moved is in
`promotions/changes.py`. Does not package a model; see `components/serving/package.py`.
"""

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.errors import BadInput, GateFailed, shorten
from components.registry.card_excerpt import excerpt_card
from components.registry.promotions.changes import PromotionChanges
from components.registry.promotions.log import PromotionLog, identity_of
from components.registry.promotions.moves import CHALLENGER, CHAMPION, PREVIOUS, Move, Standing, validate_reason
from components.registry.promotions.old_logs import old_moves
from components.registry.promotions.state import RegistryState
from components.registry.tags import TRIAL, VersionTags
from components.registry.version_files import ModelFiles
from components.registry.version_signatures import SignedVersion
from components.registry.version_store import VersionStore
from components.reports.listing import list_some
from components.tracking.client import Tracking
from components.tracking.database_conflicts import write_despite_conflicts

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "ModelVersion", "Registry"]

_LOG = logging.getLogger(__name__)
_VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""MLflow fails with status 500 where its database's integer does not hold the number."""
_DESCRIPTION_CHARS = 5000
"""MLflow 3.17 has a column of this width for it: PostgreSQL refuses more, SQLite does not notice."""


class Registry:
    """The versions of one registered model."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking = tracking
        self._client = tracking.client
        self.name = name
        self._log = PromotionLog(tracking, name)
        self._store = VersionStore(tracking)

    def _translate_errors(self) -> AbstractContextManager[None]:
        return self.tracking.translate_errors(model=self.name)

    def ensure(self, description: str) -> None:
        """Create the registered model unless it exists.

        Raises:
            BadInput: if its name is that of a prompt, which MLflow keeps in the same list.
        """
        with self._translate_errors():
            try:
                self._client.create_registered_model(self.name, tags=PromotionLog.first_tags(), description=description)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                if "taken by a prompt" in str(error):
                    raise BadInput(
                        f"{self.name!r} is the name of a prompt in MLflow", hint="set registry.model_name to another name"
                    ) from error

    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        with self._translate_errors():
            try:
                self._client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
            return sorted(self._client.search_model_versions(f"name = '{self.name}'"), key=lambda version: int(version.version))

    def other_names(self) -> list[str]:
        """Return the names of the other registered models, for an error about a wrong name."""
        with self._translate_errors():
            return sorted(model.name for model in self._client.search_registered_models(max_results=100) if model.name != self.name)

    def version(self, number: str) -> ModelVersion:
        """Return one version.

        Raises:
            BadInput: if there is none with this number, listing the newest ones.
        """
        if _VERSION_NUMBER.fullmatch(number) and (version := self._find_version(number)) is not None:
            return version
        numbers = [str(version.version) for version in reversed(self.versions())]
        hint = f"it has {list_some(numbers)}" if numbers else self.hint_if_empty()
        raise BadInput(f"model {self.name!r} has no version {shorten(repr(number))}", hint=hint)

    def version_at(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias points to, or None if it points to none.

        Alias and version are two requests: after a version that was deleted between them, the alias is read again.
        """
        deleted: str | None = None
        while (number := self.aliases().get(alias)) not in (None, deleted):
            version = self._find_version(str(number))
            if version is not None:
                return version
            deleted = number
        return None

    def _find_version(self, number: str) -> ModelVersion | None:
        with self._translate_errors():
            try:
                return self._client.get_model_version(self.name, number)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def hint_if_empty(self) -> str:
        """Return what to do if this model has no versions."""
        names = self.other_names()
        return f"existing models: {list_some(names)} (--model NAME)" if names else "run the pipeline first: celebdit run or celebdit demo"

    def resolve(self, version_or_alias: str) -> ModelVersion:
        """Return the version with a number, or the one that an alias points to.

        Raises:
            BadInput: if there is none, listing the existing ones.
        """
        if version_or_alias.isdecimal():
            return self.version(version_or_alias)
        version = self.version_at(version_or_alias)
        if version is None:
            existing = list_some([f"{alias} (version {number})" for alias, number in sorted(self.aliases().items())])
            hint = f"it has {existing or 'no aliases'}" if self.versions() else self.hint_if_empty()
            raise BadInput(f"model {self.name!r} has no alias {shorten(repr(version_or_alias))}", hint=hint)
        return version

    def version_of(self, checkpoint_digest: str, ema: str) -> ModelVersion | None:
        """Return the oldest version that holds the weights `ema` of a checkpoint and whose files are not known to be lost, or None."""
        tagged = ((version, VersionTags.from_mlflow(version.tags)) for version in self.versions())
        return next((version for version, tags in tagged if tags.is_of(checkpoint_digest, ema) and tags.files is None), None)

    def aliases(self) -> dict[str, str]:
        """Return alias -> version."""
        with self._translate_errors():
            try:
                return {alias: str(version) for alias, version in self._client.get_registered_model(self.name).aliases.items()}
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that point to a version."""
        return sorted(alias for alias, number in self.aliases().items() if number == version)

    def add_version(self, folder: Path, *, tags: VersionTags, model_id: str, run_id: str, description: str) -> ModelVersion:
        """Upload the model in `folder`, with a manifest, to its LoggedModel and make it a version, unless one holds the same weights.

        Of concurrent callers the one with the lowest number wins; the others delete theirs again, if they may: it harms nothing.
        """
        with self._translate_errors():
            assert tags.checkpoint_digest is not None, "a version is identified by its checkpoint"
            assert tags.ema is not None, "a version is identified by which of the checkpoint's weights it holds"
            existing = self.version_of(tags.checkpoint_digest, tags.ema)
            if existing is not None:
                return existing
            source, digest = self._store.put(folder, model_id=model_id, checkpoint_digest=tags.checkpoint_digest, ema=tags.ema)
            mine = self._client.create_model_version(
                self.name,
                source=source,
                run_id=run_id,
                model_id=model_id,
                tags=replace(tags, manifest_digest=digest).to_version(),
                description=excerpt_card(description, _DESCRIPTION_CHARS),
            )
            oldest = self.version_of(tags.checkpoint_digest, tags.ema)
            assert oldest is not None, "a version that was created is found"
            if str(oldest.version) != str(mine.version):
                with suppress(BadInput), self._translate_errors():
                    self._client.delete_model_version(self.name, str(mine.version))
            return oldest

    def tag_version(self, version: str, tags: VersionTags) -> None:
        """Set the tags that have a value on a version."""
        with self._translate_errors():
            for key, value in tags.to_mlflow().items():
                write_despite_conflicts(partial(self._client.set_model_version_tag, self.name, version, key, value))

    def mark_lost(self, version: str, reason: str) -> None:
        """Tag a version whose files cannot be used with the reason, in place of the outcome of its trial."""
        self.tag_version(version, VersionTags(files=shorten(reason, max_characters=1000)))
        with self._translate_errors(), suppress(MlflowException):  # it had no trial
            self._client.delete_model_version_tag(self.name, version, TRIAL)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version."""
        self._log.move_alias(alias, version)

    def check_present(self, version: ModelVersion) -> None:
        """Check that the files of a version are in MLflow, by their names and sizes.

        Raises:
            DataRefused: naming what is missing or was changed.
        """
        self._store.check_present(version)

    def files_of(self, version: str | ModelVersion, folder: Path, *, verify_key: str | None = None) -> ModelFiles:
        """Return the files of a version below `folder`, downloaded unless they are there, and every one of them verified.

        With a file of a public key in `verify_key`, its signature is verified too.

        Raises:
            DataRefused: if it is not a model of this project, a file is not the one that was registered, or the signature by that key is
                missing or wrong. BadInput: if there is no such key.
        """
        return self._store.open(self.version(version) if isinstance(version, str) else version, folder, verify_key=verify_key)

    def sign(self, version: str, folder: Path, key: Path) -> SignedVersion:
        """Sign the files of a version, which are verified first, with the private key in the file `key`.

        Raises:
            DataRefused: as for `files_of`. BadInput: if the key cannot be used, or the version has no manifest.
        """
        return self._store.sign(self.version(version), folder, key)

    def described_state(self, *, take_over_as: str | None = None) -> RegistryState | None:
        """Return what aliases, versions and promotion log say, with the log of an earlier release; None if there is no such model.

        With the name of a person, the log of an earlier release is copied into the model, if that person may change it.
        """
        return self._changes().state_for_reader(take_over_as=take_over_as)

    def moves(self) -> list[Move]:
        """Return the finished moves of the promotion log, oldest first, without the start of a log that found nothing."""
        state = self._log.read()
        return [] if state is None else [move for move in state.counted_moves() if move.version is not None or move.action != "start"]

    def promote(self, version: str, *, reason: str, by: str, force: bool = False, note: Callable[[str], None] = _LOG.warning) -> Standing:
        """Make `version` the champion and return the new standing; `note` gets what was odd before.

        Raises:
            GateFailed: if its gate did not pass and `force` is not given. BadInput: if there is no such version or no reason, or MLflow
                refuses the change, which has changed nothing then.
        """
        reason = validate_reason(reason, "promotion")
        model_version = self.version(version)
        decision = VersionTags.from_mlflow(model_version.tags).gate
        if decision != "pass" and not force:
            raise GateFailed(
                f"version {version} of {self.name!r} has gate decision {decision or 'none'}",
                hint="promote it anyway with --force; this is logged",
            )
        if model_version.current_stage == "Archived":
            note(f"version {version} is in the stage Archived of MLflow; stages are not used, so it is promoted all the same")
        identity = identity_of(model_version.tags, model_version.creation_timestamp)
        return self._changes(note).promote(version, identity, reason=reason, by=by, forced=force and decision != "pass")

    def rollback(self, *, reason: str, by: str, note: Callable[[str], None] = _LOG.warning) -> Standing:
        """Undo the newest promotion and return the new standing.

        Raises:
            BadInput: if there is no earlier champion, aliases and log disagree, or MLflow refuses the change; nothing has changed then.
        """
        return self._changes(note).rollback(reason=validate_reason(reason, "rollback"), by=by)

    def _changes(self, note: Callable[[str], None] = _LOG.warning) -> PromotionChanges:
        return PromotionChanges(self._log, old_moves=self._old_moves, note=note)

    def _old_moves(self, created_ms: int) -> list[Move]:
        return old_moves(self.tracking, self.name, created_ms)
