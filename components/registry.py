"""The door to MLflow's model registry: versions, aliases, and the log of who moved which alias and why.

Promises: one version per checkpoint, whatever the number of tries; `champion` and `previous` always follow from the promotion log, so any
interleaving of promoters ends in a state that some order of them would have given; log entries are immutable. What makes a version good is
the gate's business.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow.pyfunc
import pandas as pd
from mlflow.entities import Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from components.errors import BadInput, DataRefused, GateFailed
from components.tracking import TAG_KIND, Tracking

TAG_CHECKPOINT = "checkpoint.digest"
TAG_GATE = "gate.decision"
TAG_MODEL = "celebdit.model"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_RECONCILE_TRIES = 20


@dataclass(frozen=True)
class Move:
    """One entry of the promotion log."""

    id: str
    action: Literal["promote", "rollback"]
    version: str
    reason: str
    by: str
    at: str
    forced: bool = False


@dataclass(frozen=True)
class Standing:
    """Which versions the aliases should be on."""

    champion: str | None
    previous: str | None


def standing_after(moves: Sequence[Move]) -> Standing:
    """Return where the aliases are after all `moves`, in the order of their ids: promotions stack up, a rollback takes the top one off."""
    stack: list[str] = []
    for move in sorted(moves, key=lambda move: move.id):
        if move.action == "rollback":
            if len(stack) > 1 and stack[-1] == move.version:
                stack.pop()
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    return Standing(champion=stack[-1] if stack else None, previous=stack[-2] if len(stack) > 1 else None)


class Registry:
    """The versions of one registered model."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self._tracking = tracking
        self._client = tracking.client
        self.name = name

    def ensure(self, description: str) -> None:
        """Create the registered model unless it is there."""
        try:
            self._client.create_registered_model(self.name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        try:
            self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        return sorted(self._client.search_model_versions(f"name = '{self.name}'"), key=lambda version: int(version.version))

    def version(self, number: str) -> ModelVersion:
        """Return one version.

        Raises:
            BadInput: if there is none with this number, naming those that there are.
        """
        found = {str(version.version): version for version in self.versions()}
        if number not in found:
            raise BadInput(
                f"model {self.name!r} has no version {number!r}",
                hint=f"it has {', '.join(found) or 'no version at all: run the pipeline first'}",
            )
        return found[number]

    def version_of(self, checkpoint_digest: str) -> ModelVersion | None:
        """Return the oldest version made from a checkpoint, or None."""
        matching = [version for version in self.versions() if version.tags.get(TAG_CHECKPOINT) == checkpoint_digest]
        return matching[0] if matching else None

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

    def add_version(
        self, folder: Path, *, checkpoint_digest: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> ModelVersion:
        """Store the model in `folder` under its LoggedModel and make it a version; of versions made by racing callers the oldest counts."""
        existing = self.version_of(checkpoint_digest)
        if existing is None:
            self._client.log_model_artifacts(model_id, str(folder))
            self._client.finalize_logged_model(model_id, "READY")
            self._client.create_model_version(
                self.name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags={TAG_CHECKPOINT: checkpoint_digest, **tags},
                description=description,
            )
            existing = self.version_of(checkpoint_digest)
            assert existing is not None, "a version that was created is found"
        return existing

    def set_alias(self, alias: str, version: str) -> None:
        """Put an alias on a version."""
        self._client.set_registered_model_alias(self.name, alias, version)

    def moves(self) -> list[Move]:
        """Return the promotion log, oldest first."""
        log = self._tracking.find(self._log_identity())
        if log is None:
            return []
        entries = self._client.get_run(log.info.run_id).data.params
        return sorted((Move(id=key, **json.loads(text)) for key, text in entries.items()), key=lambda move: move.id)

    def promote(self, version: str, *, reason: str, by: str, force: bool = False) -> Standing:
        """Make `version` the champion and return the new standing.

        Raises:
            GateFailed: if its gate did not pass and `force` is not given. BadInput: if there is no such version or no reason.
        """
        if not reason.strip():
            raise BadInput("a promotion needs a reason", hint='say why: --reason "..."')
        decision = self.version(version).tags.get(TAG_GATE)
        if decision != "pass" and not force:
            raise GateFailed(
                f"version {version} of {self.name!r} has gate decision {decision or 'none'}",
                hint="promote it anyway with --force; this is logged",
            )
        self._note("promote", version, reason=reason, by=by, forced=force and decision != "pass")
        return self.reconcile()

    def rollback(self, *, reason: str, by: str) -> Standing:
        """Undo the newest promotion and return the new standing.

        Raises:
            BadInput: if there is no earlier champion.
        """
        standing = standing_after(self.moves())
        if standing.champion is None or standing.previous is None:
            raise BadInput(f"model {self.name!r} has no earlier champion to go back to")
        if not reason.strip():
            raise BadInput("a rollback needs a reason", hint='say why: --reason "..."')
        self._note("rollback", standing.champion, reason=reason, by=by, forced=False)
        return self.reconcile()

    def reconcile(self) -> Standing:
        """Put `champion` and `previous` where the log says, until nobody has moved them in between."""
        for _ in range(_RECONCILE_TRIES):
            wanted = standing_after(self.moves())
            present = self.aliases()
            stale = [
                (alias, version)
                for alias, version in ((CHAMPION, wanted.champion), (PREVIOUS, wanted.previous))
                if present.get(alias) != version
            ]
            if not stale:
                return wanted
            for alias, version in stale:
                if version is None:
                    self._client.delete_registered_model_alias(self.name, alias)
                else:
                    self.set_alias(alias, version)
        return standing_after(self.moves())

    def _note(self, action: str, version: str, *, reason: str, by: str, forced: bool) -> None:
        """Append an immutable entry to the log; MLflow params cannot be changed once they are set."""
        now = time.time()
        entry_id = f"{int(now * 1000):015d}-{uuid.uuid4().hex[:8]}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        text = json.dumps(
            {"action": action, "version": version, "reason": reason[:1000], "by": by, "at": stamp, "forced": forced}, sort_keys=True
        )
        self._client.log_batch(self._log_run_id(), params=[Param(entry_id, text)], synchronous=True)

    def _log_run_id(self) -> str:
        found = self._tracking.find(self._log_identity())
        if found is None:
            self._client.set_terminated(
                self._client.create_run(
                    self._tracking.experiment_id, tags=self._log_identity(), run_name=f"promotions of {self.name}"
                ).info.run_id
            )
            found = self._tracking.find(self._log_identity())
            assert found is not None, "a run that was created is found"
        return str(found.info.run_id)

    def _log_identity(self) -> dict[str, str]:
        return {TAG_KIND: "registry-log", TAG_MODEL: self.name}


def save_model(folder: Path, *, weights: Path, description: Mapping[str, Any], requirements: Sequence[str], model_package: Path) -> None:
    """Write a pyfunc model from code into `folder`: the serving source, the `model` package, safetensors and JSON, nothing pickled."""
    described = folder.parent / "description.json"
    described.write_text(json.dumps(description, sort_keys=True))
    sampling = description["sampling"]
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(Path(__file__).with_name("serving.py")),
        artifacts={"weights": str(weights), "description": str(described)},
        code_paths=[str(model_package)],
        pip_requirements=list(requirements),
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.long, "seed")]),
            outputs=Schema([ColSpec(DataType.long, "seed"), ColSpec(DataType.binary, "image")]),
            params=ParamSchema(
                [ParamSpec("num_steps", DataType.long, sampling["num_steps"]), ParamSpec("sampler", DataType.string, sampling["sampler"])]
            ),
        ),
    )


def try_out(folder: Path) -> None:
    """Load the model in `folder` as a server would and draw one image.

    Raises:
        DataRefused: if it cannot be loaded or does not answer with a PNG.
    """
    try:
        loaded = mlflow.pyfunc.load_model(str(folder))
        answer = loaded.predict(pd.DataFrame({"seed": [0]}), params={"num_steps": 2})
        image = bytes(answer["image"][0])
    except Exception as error:  # anything that goes wrong here would go wrong at the first request
        raise DataRefused(f"the model that was built does not work when served: {str(error)[:300]}") from error
    if not image.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataRefused("the model that was built does not answer with a PNG image")
