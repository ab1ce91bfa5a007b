"""Reads the weights of a teacher, in each rank.

Promises: they are those that were looked up, by their sha256, and finite; only safetensors are read.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.errors import DataRefused
from components.reports.listing import list_some
from components.runtime.context import StepContext
from components.storage import DigestMismatch, ObjectMissing
from components.stores.checkpoints import CheckpointStore
from components.system.locks import lock
from components.system.work_folders import WorkFolder
from components.train.teacher import damage_hint
from model.checkpoint_manifest import CheckpointInvalid, directory_name, file_entry
from model.config import DistillConfig, Teacher
from model.ema import EmaName


def fetch_teacher(teacher: Teacher, distill: DistillConfig, context: StepContext) -> dict[str, Tensor]:
    """Return the weights of `teacher`, which `distill` names; they are downloaded once per machine.

    Raises:
        DataRefused: if no stored copy has the bytes that were looked up, or they are not finite.
    """
    run, file = context.layout.run(teacher.run_key), EmaName(teacher.ema).file
    folder = context.scratch(WorkFolder.TEACHERS, teacher.weights_sha256[:16])
    problems, local = [], folder / directory_name(teacher.step) / file
    with lock(folder / "fetch.lock"):
        if local.is_file() and file_entry(local).sha256 == teacher.weights_sha256:
            try:
                return _read_weights(local)
            except CheckpointInvalid as problem:
                problems.append(str(problem))
        for home in (run.checkpoints, run.snapshots):
            checkpoints = CheckpointStore(context.store, home, warn=context.events.note)
            for entry in checkpoints.list_committed():
                if entry.step != teacher.step:
                    continue
                try:
                    fetched = checkpoints.fetch(entry.uri, folder, files=[file])
                    if fetched.files[file].sha256 == teacher.weights_sha256:
                        return _read_weights(fetched.directory / file)
                    problems.append(f"{entry.uri} holds other weights")
                except (ObjectMissing, DigestMismatch, CheckpointInvalid) as problem:
                    problems.append(str(problem))
    causes = list_some(dict.fromkeys(problems), most=5, separator="; ") or f"{run.prefix} has none"
    raise DataRefused(
        f"the weights of the teacher {teacher.summary} are missing or damaged: {causes}",
        hint=damage_hint(distill, teacher.step, context.store, context.layout),
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointInvalid(f"{path.name} cannot be read: {error}") from error
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointInvalid(f"{path.name} is not finite in {', '.join(broken[:3])}")
    return weights
