"""The door to MLflow's model registry: versions, aliases, and the log of who moved which alias and why.

Promises: one version per checkpoint and average of its weights, whatever the number of tries or racing callers; `champion` and `previous`
always follow from the promotion log (`promotions.py`), whose entries cannot be changed and none of which is lost. What makes a version good
is the gate's business, how a model is packed is that of `served_model.py`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from mlflow.artifacts import download_artifacts
from mlflow.entities import Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from components.errors import BadInput, DataRefused, GateFailed, TemporaryFailure
from components.registry.promotions import CHALLENGER, CHAMPION, PREVIOUS, Move, Standing, checked_reason, next_move, standing_after
from components.runtime.context import describe
from components.storage import file_sha256
from components.tracking.client import TAG_CHECKPOINT, TAG_EMA, TAG_KIND, Tracking
from model.description import VersionDescription

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "ModelFiles", "ModelVersion", "Registry"]

TAG_GATE = "gate.decision"
TAG_MODEL = "celebdit.model"
WEIGHTS_FILE, DESCRIPTION_FILE = "weights.safetensors", "description.json"
_DESCRIPTION_CHARS = 5000
"""MLflow 3.17 has a column of this width for it: PostgreSQL refuses more, SQLite does not notice."""
_RECONCILE_TRIES = 200
_PAUSE_S = 0.05

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class ModelFiles:
    """What a version is made of, on this machine."""

    folder: Path
    weights: Path
    description: VersionDescription


def _reached(method: "Callable[Concatenate[Registry, P], R]") -> "Callable[Concatenate[Registry, P], R]":
    """Say in one way that MLflow cannot be reached."""

    @wraps(method)
    def call(self: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.tracking.reached():
            return method(self, *args, **kwargs)

    return call


def shortened(card: str, most_chars: int) -> str:
    """Return `card`, or as many of its whole sections as fit into `most_chars`, and where the rest is.

    A section that does not fit is left out, and those after it are kept if there is room.
    """
    if len(card) <= most_chars:
        return card
    rest = "_Shortened: the whole card is `README.md` among the files of this version._\n"
    first, *sections = card.rstrip("\n").split("\n\n##")
    kept = first[: most_chars - len(rest) - 2]
    for section in sections:
        if len(kept) + len(section) + 4 + 2 + len(rest) <= most_chars:
            kept += f"\n\n##{section}"
    return f"{kept}\n\n{rest}"


class Registry:
    """The versions of one registered model."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking = tracking
        self._client = tracking.client
        self.name = name

    @_reached
    def ensure(self, description: str) -> None:
        """Create the registered model unless it is there."""
        try:
            self._client.create_registered_model(self.name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @_reached
    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        try:
            self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        return sorted(self._client.search_model_versions(f"name = '{self.name}'"), key=lambda version: int(version.version))

    @_reached
    def other_names(self) -> list[str]:
        """Return the names of the other registered models, for somebody who asked for the wrong one."""
        return sorted(model.name for model in self._client.search_registered_models(max_results=100) if model.name != self.name)

    def version(self, number: str) -> ModelVersion:
        """Return one version.

        Raises:
            BadInput: if there is none with this number, naming those that there are.
        """
        found = {str(version.version): version for version in self.versions()}
        if number not in found:
            raise BadInput(
                f"model {self.name!r} has no version {number!r}", hint=f"it has {', '.join(found)}" if found else self.nothing_here()
            )
        return found[number]

    def nothing_here(self) -> str:
        """Return what to do if this model has no versions."""
        others = self.other_names()
        return (
            f"models that there are: {', '.join(others)} (--model NAME)"
            if others
            else "run the pipeline first: celebdit run or celebdit demo"
        )

    def resolve(self, version_or_alias: str) -> ModelVersion:
        """Return the version with a number, or the one that an alias stands on.

        Raises:
            BadInput: if there is none, naming what there is.
        """
        if version_or_alias.isdecimal():
            return self.version(version_or_alias)
        aliases = self.aliases()
        if version_or_alias not in aliases:
            there = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items()))
            hint = f"it has {there or 'no aliases'}" if self.versions() else self.nothing_here()
            raise BadInput(f"model {self.name!r} has no alias {version_or_alias!r}", hint=hint)
        return self.version(aliases[version_or_alias])

    def version_of(self, checkpoint_digest: str, ema: str) -> ModelVersion | None:
        """Return the oldest version made from the average `ema` of a checkpoint's weights, or None."""
        wanted = {TAG_CHECKPOINT: checkpoint_digest, TAG_EMA: ema}
        return next((version for version in self.versions() if wanted.items() <= version.tags.items()), None)

    @_reached
    def aliases(self) -> dict[str, str]:
        """Return alias -> version."""
        try:
            return {alias: str(version) for alias, version in self._client.get_registered_model(self.name).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that stand on a version."""
        return sorted(alias for alias, number in self.aliases().items() if number == version)

    @_reached
    def add_version(
        self, folder: Path, *, checkpoint_digest: str, ema: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> ModelVersion:
        """Store the model in `folder` under its LoggedModel and make it a version, unless its weights are one already.

        Of several callers at once the one with the lowest number wins, and the others take theirs away again.
        """
        existing = self.version_of(checkpoint_digest, ema)
        if existing is not None:
            return existing
        self._client.log_model_artifacts(model_id, str(folder))
        self._client.finalize_logged_model(model_id, "READY")
        mine = self._client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={TAG_CHECKPOINT: checkpoint_digest, TAG_EMA: ema, **tags},
            description=shortened(description, _DESCRIPTION_CHARS),
        )
        oldest = self.version_of(checkpoint_digest, ema)
        assert oldest is not None, "a version that was created is found"
        if str(oldest.version) != str(mine.version):
            self._client.delete_model_version(self.name, str(mine.version))
        return oldest

    @_reached
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags on a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, version, key, value)

    @_reached
    def set_alias(self, alias: str, version: str) -> None:
        """Put an alias on a version."""
        self._client.set_registered_model_alias(self.name, alias, version)

    @_reached
    def files_of(self, version: str, folder: Path) -> ModelFiles:
        """Fetch the files of a version below `folder`, unless they are there, and check the weights.

        Raises:
            DataRefused: if it is not a model of this project, or its weights are not those that were registered.
        """
        target = folder / f"{self.name}-{version}-{str(self.version(version).tags.get(TAG_CHECKPOINT, ''))[:16]}"
        weights, described = target / "artifacts" / WEIGHTS_FILE, target / "artifacts" / DESCRIPTION_FILE
        if not (described.exists() and weights.exists()):
            target.mkdir(parents=True, exist_ok=True)
            self._download(version, target)
        if not (described.exists() and weights.exists()):
            raise DataRefused(f"version {version} of {self.name!r} is not a model of celebdit: it has no {WEIGHTS_FILE}")
        try:
            description = VersionDescription.read(described)
        except ValidationError as error:
            problem = describe(error, section=DESCRIPTION_FILE)
            raise DataRefused(
                f"version {version} of {self.name!r} is not one that this version of celebdit can read: {problem}",
                hint="use the version of celebdit that registered it, or a newer one",
            ) from error
        if file_sha256(weights) != description.weights_sha256:
            weights.unlink()
            raise DataRefused(
                f"the weights of version {version} of {self.name!r} are not those that were registered",
                hint="register the checkpoint again, and look at who can write to MLflow's artifacts",
            )
        return ModelFiles(target, weights, description)

    def _download(self, version: str, target: Path) -> None:
        uri = f"models:/{self.name}/{version}"
        try:
            download_artifacts(artifact_uri=uri, dst_path=str(target), tracking_uri=self.tracking.settings.mlflow_uri)
        except MlflowException as error:
            raise DataRefused(
                f"the files of version {version} of {self.name!r} cannot be fetched: {str(error).splitlines()[0][:200]}",
                hint="look into MLflow's artifact store",
            ) from error

    @_reached
    def moves(self) -> list[Move]:
        """Return the promotion log, oldest first."""
        found: dict[str, str] = {}
        # Promoters that race for the first entry may each open a log; all of them count.
        for log in self.tracking.search(self._log_identity()):
            found |= self._client.get_run(log.info.run_id).data.params
        return sorted((Move.parse(entry_id, text) for entry_id, text in found.items()), key=lambda move: move.id)

    def standing(self) -> Standing:
        """Return where `champion` and `previous` should be by the log."""
        return standing_after(self.moves(), {str(version.version) for version in self.versions()})

    def promote(self, version: str, *, reason: str, by: str, force: bool = False) -> Standing:
        """Make `version` the champion and return the new standing.

        Raises:
            GateFailed: if its gate did not pass and `force` is not given. BadInput: if there is no such version or no reason.
        """
        reason = checked_reason(reason, "promotion")
        decision = self.version(version).tags.get(TAG_GATE)
        if decision != "pass" and not force:
            raise GateFailed(
                f"version {version} of {self.name!r} has gate decision {decision or 'none'}",
                hint="promote it anyway with --force; this is logged",
            )
        moves = self.moves()
        forced = force and decision != "pass"
        self._append(next_move(moves, "promote", version, reason=reason, by=by, forced=forced, now_s=time.time()))
        return self.reconcile()

    def rollback(self, *, reason: str, by: str) -> Standing:
        """Undo the newest promotion and return the new standing.

        Raises:
            BadInput: if there is no earlier champion.
        """
        reason = checked_reason(reason, "rollback")
        standing, moves = self.standing(), self.moves()
        if standing.champion is None or standing.previous is None:
            raise BadInput(f"model {self.name!r} has no earlier champion to go back to", hint="celebdit models history shows every move")
        self._append(next_move(moves, "rollback", standing.champion, reason=reason, by=by, forced=False, now_s=time.time()))
        return self.reconcile()

    def reconcile(self) -> Standing:
        """Put `champion` and `previous` where the log says, until they are found there after nobody has moved them.

        Raises:
            TemporaryFailure: if others keep moving them.
        """
        for _ in range(_RECONCILE_TRIES):
            wanted, present = self.standing(), self.aliases()
            stale = [(alias, to) for alias, to in ((CHAMPION, wanted.champion), (PREVIOUS, wanted.previous)) if present.get(alias) != to]
            if not stale:
                return wanted
            for alias, to in stale:
                # MLflow refuses the second of two who make an alias at once (a constraint of its database): the next look decides.
                with suppress(MlflowException):
                    self._put(alias, to)
            time.sleep(_PAUSE_S)
        raise TemporaryFailure(
            f"the aliases of {self.name!r} are being moved by others all the time",
            hint="the move is in the log; celebdit models list shows where they are",
        )

    @_reached
    def _put(self, alias: str, version: str | None) -> None:
        if version is None:
            self._client.delete_registered_model_alias(self.name, alias)
        else:
            self._client.set_registered_model_alias(self.name, alias, version)

    @_reached
    def _append(self, move: Move) -> None:
        """Append an immutable entry to the log; MLflow params cannot be changed once they are set."""
        self._client.log_batch(self._log_run_id(), params=[Param(move.id, move.text())], synchronous=True)

    def _log_run_id(self) -> str:
        found = self.tracking.find(self._log_identity())
        if found is not None:
            return str(found.info.run_id)
        opened = self._client.create_run(
            self.tracking.experiment_id, tags=self._log_identity(), run_name=f"promotions of {self.name}"
        ).info.run_id
        self._client.set_terminated(opened)
        return str(opened)

    def _log_identity(self) -> dict[str, str]:
        return {TAG_KIND: "registry-log", TAG_MODEL: self.name}
