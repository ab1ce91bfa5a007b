"""Model registry client: versions, aliases, and promotion of a version to champion.

Promises: one version per checkpoint and EMA, whatever the number of tries or racing callers; `champion` and `previous` always follow from
the promotion log (`promotion_log.py`). Does not package a model; see `components/serving/package.py`.
"""

import time
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.errors import BadInput, GateFailed
from components.registry.aliases import settle_aliases
from components.registry.card_excerpt import excerpt_card
from components.registry.promotion_log import PromotionLog
from components.registry.promotions import CHALLENGER, CHAMPION, PREVIOUS, Move, Standing, next_move, standing_after, validate_reason
from components.registry.tags import VersionTags
from components.registry.version_files import ModelFiles
from components.registry.version_store import VersionStore
from components.tracking.client import Tracking

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "ModelVersion", "Registry"]

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
        """Create the registered model unless it exists."""
        with self._translate_errors():
            try:
                self._client.create_registered_model(self.name, description=description)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

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
            BadInput: if there is none with this number, listing the existing ones.
        """
        versions = {str(version.version): version for version in self.versions()}
        if number not in versions:
            hint = f"it has {', '.join(versions)}" if versions else self.hint_if_empty()
            raise BadInput(f"model {self.name!r} has no version {number!r}", hint=hint)
        return versions[number]

    def hint_if_empty(self) -> str:
        """Return what to do if this model has no versions."""
        names = self.other_names()
        return f"existing models: {', '.join(names)} (--model NAME)" if names else "run the pipeline first: celebdit run or celebdit demo"

    def resolve(self, version_or_alias: str) -> ModelVersion:
        """Return the version with a number, or the one that an alias points to.

        Raises:
            BadInput: if there is none, listing the existing ones.
        """
        if version_or_alias.isdecimal():
            return self.version(version_or_alias)
        aliases = self.aliases()
        if version_or_alias not in aliases:
            existing = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items()))
            hint = f"it has {existing or 'no aliases'}" if self.versions() else self.hint_if_empty()
            raise BadInput(f"model {self.name!r} has no alias {version_or_alias!r}", hint=hint)
        return self.version(aliases[version_or_alias])

    def version_of(self, checkpoint_digest: str, ema: str) -> ModelVersion | None:
        """Return the oldest version that holds the weights `ema` of a checkpoint and whose files are not known to be lost, or None."""
        tagged = ((version, VersionTags.from_mlflow(version.tags)) for version in self.versions())
        return next((version for version, tags in tagged if tags.is_of(checkpoint_digest, ema) and tags.files is None), None)

    def _tags_of(self, number: str) -> VersionTags:
        return VersionTags.from_mlflow(self.version(number).tags)

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
                tags=replace(tags, manifest_digest=digest).to_mlflow(),
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
                self._client.set_model_version_tag(self.name, version, key, value)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version."""
        with self._translate_errors():
            self._client.set_registered_model_alias(self.name, alias, version)

    def check_present(self, version: ModelVersion) -> None:
        """Check that the files of a version are in MLflow, by their names and sizes.

        Raises:
            DataRefused: naming what is missing or was changed.
        """
        self._store.check_present(version)

    def files_of(self, version: str, folder: Path) -> ModelFiles:
        """Return the files of a version below `folder`, downloaded unless they are there, and every one of them verified.

        Raises:
            DataRefused: if it is not a model of this project, or a file is not the one that was registered.
        """
        return self._store.open(self.version(version), folder)

    def moves(self) -> list[Move]:
        """Return the promotion log, oldest first, without the entries of an earlier model of the same name."""
        return self._log.moves()

    def standing(self) -> Standing:
        """Return the versions that `champion` and `previous` should point to by the log."""
        checkpoints = {str(version.version): VersionTags.from_mlflow(version.tags).checkpoint_digest for version in self.versions()}
        # An entry about a version that was deleted, and whose number another checkpoint has now, counts like that of any deleted one.
        moves = [move for move in self.moves() if move.is_of_version(checkpoints.get(move.version, move.checkpoint))]
        return standing_after(moves, checkpoints)

    def _append(self, action: Literal["promote", "rollback"], version: str, *, reason: str, by: str, forced: bool = False) -> None:
        self._log.append(
            next_move(
                self.moves(),
                action,
                version,
                reason=reason,
                by=by,
                forced=forced,
                now_s=time.time(),
                checkpoint=self._tags_of(version).checkpoint_digest,
                model_created_ms=self._log.model_created_ms(),
            )
        )

    def promote(self, version: str, *, reason: str, by: str, force: bool = False) -> Standing:
        """Make `version` the champion and return the new standing.

        Raises:
            GateFailed: if its gate did not pass and `force` is not given. BadInput: if there is no such version or no reason.
        """
        reason = validate_reason(reason, "promotion")
        decision = self._tags_of(version).gate
        if decision != "pass" and not force:
            raise GateFailed(
                f"version {version} of {self.name!r} has gate decision {decision or 'none'}",
                hint="promote it anyway with --force; this is logged",
            )
        self._append("promote", version, reason=reason, by=by, forced=force and decision != "pass")
        return self.reconcile()

    def rollback(self, *, reason: str, by: str) -> Standing:
        """Undo the newest promotion and return the new standing.

        Raises:
            BadInput: if there is no earlier champion.
        """
        reason = validate_reason(reason, "rollback")
        standing = self.standing()
        if standing.champion is None or standing.previous is None:
            raise BadInput(
                f"model {self.name!r} has no earlier champion to roll back to", hint="celebdit models history lists every promotion"
            )
        self._append("rollback", standing.champion, reason=reason, by=by)
        return self.reconcile()

    def reconcile(self) -> Standing:
        """Point `champion` and `previous` to the versions that follow from the log, until they are seen to do so.

        Raises:
            TemporaryFailure: if they keep changing concurrently.
        """
        return settle_aliases(self.name, standing=self.standing, aliases=self.aliases, move=self._move_alias)

    def _move_alias(self, alias: str, version: str | None) -> None:
        with self._translate_errors():
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
            else:
                self._client.set_registered_model_alias(self.name, alias, version)
