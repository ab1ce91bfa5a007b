"""Looks up the teacher of a distillation in the store.

Promises: a teacher that is missing, unfinished, of another network or with a damaged manifest is refused before any step, in words; the
result names the weights by their sha256, so that a student never continues with other ones. Reads small objects only and needs no PyTorch,
so that a plan and preflight look it up too. Reads no weights; see `teacher_weights.py`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from components.errors import BadInput, DataRefused
from components.reports.listing import list_some, list_steps
from components.storage import ObjectMissing, StoreUri
from components.storage.reader import StoreReader
from components.stores.checkpoint_commit import read_commit
from components.stores.checkpoint_names import committed_checkpoints
from components.stores.layout import StoreLayout
from components.train.spec import find_newest_spec
from model.canonical import JsonObject
from model.checkpoint_manifest import MANIFEST_FILE, STATE_FILE, CheckpointInvalid, FileEntry, UnsupportedCheckpointFormat, decode_manifest
from model.config import DistillConfig, ModelSpec, Recipe, Teacher
from model.ema import EmaName


@dataclass(frozen=True)
class _Stored:
    """One stored attempt at the teacher's step: its files by its manifest, and the identity of its run."""

    uri: StoreUri
    files: dict[str, FileEntry]
    identity: JsonObject


def with_teacher(recipe: Recipe, reader: StoreReader, layout: StoreLayout) -> Recipe:
    """Return `recipe` with its teacher looked up, or as it is if it distils none.

    Raises:
        BadInput: if there is no such training, it is not finished or a student itself, or its network, diffusion or averages are others.
        DataRefused: if its checkpoint is damaged.
    """
    distill = recipe.distill
    if distill is None:
        return recipe
    step, default_ema = _step_and_ema(distill, reader, layout)
    stored = _read_step(distill, step, reader, layout)
    ema = EmaName(distill.teacher_ema or default_ema)
    if ema.file not in stored.files:
        averages = list_some(name for file in sorted(stored.files) if (name := EmaName.from_file(file)) is not None)
        raise BadInput(
            f"the teacher {distill.teacher} has no average {ema.setting!r} of the weights",
            hint=f"set distill.teacher_ema to one of {averages}",
        )
    if "distill" in stored.identity:
        raise BadInput(
            f"distill.teacher {distill.teacher} is a student itself: its estimates are no means of images, which a student learns from",
            hint=f"distil its own teacher, {stored.identity['distill']['teacher']['run_key']}",
        )
    _check_same_network(recipe, stored)
    teacher = Teacher(run_key=distill.teacher_run, step=step, ema=ema.setting, weights_sha256=stored.files[ema.file].sha256)
    return recipe.model_copy(update={"teacher": teacher})


def _step_and_ema(distill: DistillConfig, reader: StoreReader, layout: StoreLayout) -> tuple[int, str]:
    """Return the step of the teacher's checkpoint, and the average that the teacher samples with."""
    run = layout.run(distill.teacher_run)
    spec = find_newest_spec(distill.teacher_run, reader, layout)
    if spec is None:
        raise BadInput(
            f"distill.teacher {distill.teacher}: there is no such training in {run.prefix}",
            hint="name a run key as `celebdit run` prints it; if it was deleted, put it back: also a finished student needs it to run",
        )
    if distill.teacher_step is not None:
        return distill.teacher_step, spec.sampling.ema
    steps, total = _committed_steps(run.checkpoints, reader), spec.training.total_steps
    if total not in steps:
        raise BadInput(
            f"distill.teacher {distill.teacher} is not finished: it has {f'step {max(steps)}' if steps else 'no step'} of {total}",
            hint="finish it with the command that began it"
            + (f", or distil what it has: distill.teacher={distill.teacher}@{max(steps)}" if steps else ""),
        )
    return total, spec.sampling.ema


def _committed_steps(home: StoreUri, reader: StoreReader) -> set[int]:
    return {entry.step for entry in committed_checkpoints([item.uri for item in reader.list(home)])}


def _read_step(distill: DistillConfig, step: int, reader: StoreReader, layout: StoreLayout) -> _Stored:
    """Return the newest readable attempt at the teacher's `step`, a checkpoint or with RUN_KEY@STEP a snapshot of its averages."""
    run, problems = layout.run(distill.teacher_run), list[str]()
    homes = (run.checkpoints, run.snapshots) if distill.teacher_step is not None else (run.checkpoints,)
    for home in homes:
        for entry in committed_checkpoints([item.uri for item in reader.list(home)]):
            if entry.step != step:
                continue
            try:
                return _read_stored(entry.uri, reader)
            except (ObjectMissing, CheckpointInvalid) as problem:
                problems.append(str(problem))
            except UnsupportedCheckpointFormat as error:
                raise BadInput(f"{entry.uri}: {error}", hint="use the version of celebdit that trained the teacher") from error
    if problems:
        raise DataRefused(
            f"the checkpoint of the teacher {distill.teacher} is damaged: {list_some(problems, most=5, separator='; ')}",
            hint=damage_hint(distill, step, reader, layout),
        )
    raise BadInput(
        f"distill.teacher {distill.teacher} has no checkpoint or snapshot of that step",
        hint=f"it has steps {list_steps(_all_steps(distill, reader, layout))}",
    )


def damage_hint(distill: DistillConfig, step: int, reader: StoreReader, layout: StoreLayout) -> str:
    """Return what to do about a damaged teacher: its training makes the last checkpoint again, but no earlier one or snapshot."""
    if distill.teacher_step is None:
        return "run the teacher's training again: it makes its last checkpoint again"
    others = [at for at in _all_steps(distill, reader, layout) if at != step]
    return f"distil another step of it: {list_steps(others)}" if others else "it has no other step: distil another training"


def _all_steps(distill: DistillConfig, reader: StoreReader, layout: StoreLayout) -> list[int]:
    run = layout.run(distill.teacher_run)
    return sorted(_committed_steps(run.checkpoints, reader) | _committed_steps(run.snapshots, reader))


def _read_stored(uri: StoreUri, reader: StoreReader) -> _Stored:
    try:
        _, files = decode_manifest(_read_verified(uri / MANIFEST_FILE, read_commit(uri, reader).digest, reader))
        state = json.loads(_read_verified(uri / STATE_FILE, files[STATE_FILE].sha256, reader))
        return _Stored(uri, files, dict(state["identity"]))
    except (ValueError, KeyError, TypeError) as cause:
        raise cause if isinstance(cause, CheckpointInvalid) else CheckpointInvalid(f"{uri} is not readable: {cause}") from cause


def _read_verified(uri: StoreUri, sha256: str, reader: StoreReader) -> bytes:
    raw = reader.get_bytes(uri)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise CheckpointInvalid(f"{uri} has not the sha256 that its checkpoint names")
    return raw


def _check_same_network(recipe: Recipe, stored: _Stored) -> None:
    try:
        model = ModelSpec.from_identity(stored.identity)
    except ValueError as error:
        raise DataRefused(f"{stored.uri} does not describe its network: {error}") from error
    lines = [line for section in ("network", "diffusion") for line in _differences_in(section, model, recipe)]
    if lines:
        raise BadInput(
            "\n".join(lines),
            hint="a student has the network and diffusion of its teacher, which the configuration of the teacher's run names",
        )


def _differences_in(section: str, model: ModelSpec, recipe: Recipe) -> Iterator[str]:
    """Return a line for each setting that differs; one that is left out has its default."""
    teacher, student = (getattr(origin, section) for origin in (model, recipe))
    for name in type(student).model_fields:
        has, needs = getattr(student, name), getattr(teacher, name)
        if has != needs:
            setting = f"{section}.{name}"
            yield f"{setting} is {_text(has)}, the teacher has {_text(needs)}: set {setting}={_text(needs, unset='')}"


def _text(value: object, *, unset: str = "unset") -> str:
    """Return a value as an override has it; one that is None is removed by an empty one."""
    return unset if value is None else value if isinstance(value, str) else json.dumps(value)
