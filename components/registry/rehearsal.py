"""The calls to MLflow that only late steps make, made once before a GPU is requested: logged models, artifacts and the model registry.

Promises: what it creates, it deletes, as far as its user may; no version, alias or tag of a registered model that exists is changed. The
files of a deleted logged model, some bytes, stay until MLflow's `gc`. Who may only edit an experiment leaves one logged model there, which
later rehearsals use.
"""

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput, CelebditError, TrackingCallMissing, TrackingRefused
from components.registry.client import ModelVersion, Registry
from components.registry.version_artifacts import VersionArtifacts
from components.tracking.client import Run, Tracking
from components.tracking.database_conflicts import write_despite_conflicts
from components.tracking.logged_models import LoggedModel
from components.tracking.run_calls import METRIC, REHEARSAL_FILE, REHEARSAL_TEXT, rehearse_run
from components.tracking.tags import TAG_KIND

_NAME = "preflight"
_KEPT = "rehearsal"
"""Kind of the logged model that its creator may not delete."""
_TAG = "celebdit.preflight"
_OTHER_ALIAS = f"{_NAME}-removed"
_NAME_CHARACTERS = 100
"""Of the registered model's name, in the name of the one for the rehearsal."""


def rehearse(tracking: Tracking, run: Run, model_name: str, *, keep_model: bool = True) -> None:
    """Make every kind of call of the later steps, for the MLflow run `run` and the registered model `model_name`.

    A server whose default permission is no reading answers 403 for a model that does not exist, to the evaluate step, too. There the model
    is created, for this user to read; without `keep_model` it is deleted again.

    Raises:
        BadInput: naming the right that is missing, or the call that the server does not offer.
    """
    began_s = time.monotonic()
    run_id = run.info.run_id
    rehearse_run(tracking, run)
    with _logged_model(tracking, run_id) as model:
        source = _upload(tracking, model)
        with tracking.translate_errors():
            tracking.client.log_metric(run_id, METRIC, time.monotonic() - began_s, step=0, model_id=model.model_id)
        with _ensure_readable(Registry(tracking, model_name), keep_model=keep_model) as registry:
            _rehearse_registry(registry, run_id, model.model_id, source)


@contextmanager
def _logged_model(tracking: Tracking, run_id: str) -> Iterator[LoggedModel]:
    """Yield a logged model: a new one, which is deleted after the block, or the one that could not be deleted before."""
    client, matching = tracking.client, f"tags.`{TAG_KIND}` = '{_KEPT}'"
    with tracking.translate_errors():
        kept = client.search_logged_models([tracking.experiment_id], filter_string=matching)
        if kept:
            yield kept[0]
            return
        model = client.create_logged_model(
            tracking.experiment_id, name=_NAME, source_run_id=run_id, tags={TAG_KIND: _NAME, _TAG: run_id}, model_type="denoiser"
        )
        try:
            _check_found(tracking, run_id)
            yield model
        finally:
            _delete_or_keep(tracking, model.model_id)


def _check_found(tracking: Tracking, run_id: str) -> None:
    """Check that a search finds the logged model; MLflow leaves out silently what its user may not read."""
    matching = f"tags.`{_TAG}` = '{run_id}'"
    if not tracking.client.search_logged_models([tracking.experiment_id], filter_string=matching):
        raise BadInput(
            f"MLflow at {tracking.settings.mlflow_uri} does not find the logged model that was created in experiment "
            f"{tracking.settings.experiment!r}",
            hint="ask an administrator of MLflow for the right READ on its logged models",
        )


def _delete_or_keep(tracking: Tracking, model_id: str) -> None:
    with suppress(CelebditError):
        try:
            with tracking.translate_errors():
                tracking.client.delete_logged_model(model_id)
        except BadInput:
            with tracking.translate_errors():
                tracking.client.set_logged_model_tags(model_id, {TAG_KIND: _KEPT})


def _upload(tracking: Tracking, model: LoggedModel) -> str:
    """Upload a file to a logged model as the register step does, and return its place."""
    with tempfile.TemporaryDirectory(prefix="celebdit-") as folder:
        (Path(folder) / REHEARSAL_FILE).write_text(REHEARSAL_TEXT)
        return VersionArtifacts(tracking).upload(Path(folder), model_id=model.model_id, name=_NAME)


@contextmanager
def _ensure_readable(registry: Registry, *, keep_model: bool) -> Iterator[Registry]:
    """Yield `registry`, whose model its user may read, or would be told that it does not exist."""
    client, name = registry.tracking.client, registry.name
    is_new = False
    try:
        _exists(registry)
    except BadInput as refused:
        try:
            with registry.tracking.translate_errors(model=name):
                client.create_registered_model(name)
        except TrackingCallMissing:
            raise
        except TrackingRefused:  # it exists
            raise refused from None
        except BadInput:
            raise BadInput(f"{refused.message}, or to create it", hint=refused.hint) from None
        is_new = True
    try:
        yield registry
    finally:
        if is_new and not keep_model:
            with suppress(CelebditError), registry.tracking.translate_errors(model=name):
                client.delete_registered_model(name)


def _exists(registry: Registry) -> bool:
    try:
        with registry.tracking.translate_errors(model=registry.name):
            registry.tracking.client.get_registered_model(registry.name)
    except TrackingCallMissing:
        raise
    except TrackingRefused:
        return False
    return True


def _rehearse_registry(registry: Registry, run_id: str, model_id: str, source: str) -> None:
    exists = _exists(registry)
    versions = registry.versions()
    seen = _rehearse_existing(registry, versions) if exists else _Seen()
    try:
        _rehearse_new(registry, run_id=run_id, model_id=model_id, source=source, seen=seen)
    except TrackingRefused:
        raise
    except BadInput:  # the rights that count are those on the model that exists, which were seen above if it has versions
        if not versions:
            raise


@dataclass(frozen=True)
class _Seen:
    """Of what the calls were made on the registered model that exists."""

    model: bool = False
    version: bool = False


def _rehearse_existing(registry: Registry, versions: list[ModelVersion]) -> _Seen:
    """Change nothing of a registered model, by the calls that need the rights to change it and its versions."""
    client, name = registry.tracking.client, registry.name
    with registry.tracking.translate_errors(model=name):
        write_despite_conflicts(lambda: client.set_registered_model_tag(name, _TAG, _NAME))
        client.delete_registered_model_tag(name, _TAG)
        for version in versions[-1:]:
            number = str(version.version)
            client.get_model_version(name, number)
            client.get_model_version_download_uri(name, number)
            for key, value in list(version.tags.items())[:1]:
                client.set_model_version_tag(name, number, key, value)
    return _Seen(model=True, version=any(version.tags for version in versions[-1:]))


def _rehearse_new(registry: Registry, *, run_id: str, model_id: str, source: str, seen: _Seen) -> None:
    """Register a version of a model that exists for this rehearsal alone, and make the calls that were not seen yet.

    Where there is a registered model, a user does not need the right to create another.
    """
    client, tracking = registry.tracking.client, registry.tracking
    name = f"{registry.name[:_NAME_CHARACTERS]}-{_NAME}-{uuid.uuid4().hex[:8]}"
    with tracking.translate_errors(model=registry.name):
        try:
            with tracking.translate_errors(model=registry.name):
                client.create_registered_model(name, description=REHEARSAL_TEXT)
        except TrackingRefused:
            raise
        except BadInput:
            if not seen.model:
                raise
            return
        try:
            version = str(client.create_model_version(name, source=source, run_id=run_id, model_id=model_id).version)
            if not seen.version:
                client.set_model_version_tag(name, version, _TAG, run_id)
                client.get_model_version(name, version)
                client.get_model_version_download_uri(name, version)
            if not seen.model:
                client.set_registered_model_tag(name, _TAG, _NAME)
                client.delete_registered_model_tag(name, _TAG)
            client.set_registered_model_alias(name, _OTHER_ALIAS, version)
            client.delete_registered_model_alias(name, _OTHER_ALIAS)
            client.set_registered_model_alias(name, _NAME, version)
            listed = client.search_model_versions(f"name = '{name}'")
            if Registry(tracking, name).aliases() != {_NAME: version} or not listed:
                raise BadInput(
                    f"MLflow at {tracking.settings.mlflow_uri} does not find the version that was registered",
                    hint="ask an administrator of MLflow for the right READ on the versions of registered models",
                )
        except BaseException:
            with suppress(CelebditError):
                _delete_model(registry, name)
            raise
        _delete_model(registry, name)


def _delete_model(registry: Registry, name: str) -> None:
    """Delete the registered model of a rehearsal, if its user may; where the call is not offered, each rehearsal would leave one."""
    try:
        with registry.tracking.translate_errors(model=registry.name):
            registry.tracking.client.delete_registered_model(name)
    except TrackingCallMissing:
        raise
    except CelebditError:
        pass
