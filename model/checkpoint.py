"""Write and read checkpoints on local disk.

Promises: `publish` makes a checkpoint's directory visible in one rename, after all its files are on disk; `read` verifies the directory and
returns exactly what was published, or raises; equal states have equal digests. The layout is in `checkpoint_manifest.py`. Does not upload;
see `components/stores/checkpoints.py`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.canonical import JsonObject, canonical_json
from model.checkpoint_manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    CheckpointInvalid,
    directory_name,
    encode_manifest,
    file_entry,
    verify,
)

Crash = Callable[[str], None]
"""Called with the name of each point of the protocol; a test raises from it to simulate a crash there."""


@dataclass(frozen=True)
class CheckpointState:
    """Content of a checkpoint: groups of named tensors (one file each), and facts that are JSON.

    `notes` (such as the cost so far) are stored beside a checkpoint: `publish` does not write them and its digest does not depend on them.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: JsonObject
    notes: JsonObject = field(default_factory=dict)


def publish(state: CheckpointState, root: Path, *, crash: Crash = lambda point: None) -> Checkpoint:
    """Write `state` under `root`, in place of an existing checkpoint of the same step.

    A crash at any moment leaves the previous checkpoints untouched, and this one absent or complete.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".staging-{directory_name(state.step)}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    crash("staging made")
    try:
        for group, tensors in state.tensors.items():
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, staging / f"{group}.safetensors")
            crash(f"{group} written")
        (staging / STATE_FILE).write_bytes(canonical_json({"step": state.step, **state.facts}))
        crash("state written")
        files = {path.name: file_entry(path) for path in sorted(staging.iterdir())}
        manifest = encode_manifest(state.step, files)
        (staging / MANIFEST_FILE).write_bytes(manifest)
        crash("manifest written")
        for path in [*sorted(staging.iterdir()), staging]:
            _fsync(path)
        crash("files synced")
        final = root / directory_name(state.step)
        if final.exists():
            retired = root / f".retired-{final.name}-{os.getpid()}"
            final.rename(retired)
            crash("old one retired")
            staging.rename(final)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staging.rename(final)
        crash("renamed")
        _fsync(root)
    except (OSError, SafetensorError):
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Checkpoint(directory=final, step=state.step, digest=hashlib.sha256(manifest).hexdigest(), files=files)


def read(directory: Path, *, groups: Iterable[str] | None = None) -> CheckpointState:
    """Verify the checkpoint in `directory` and load it, or only the named `groups` of tensors.

    Raises:
        CheckpointInvalid: if it is corrupt or incomplete.
    """
    checkpoint = verify(directory)
    facts = json.loads((directory / STATE_FILE).read_bytes())
    names = groups if groups is not None else [Path(name).stem for name in checkpoint.files if name.endswith(".safetensors")]
    tensors = {}
    for group in names:
        try:
            tensors[group] = load_file(directory / f"{group}.safetensors")
        except (SafetensorError, OSError) as cause:
            raise CheckpointInvalid(f"{directory.name}: {group}.safetensors cannot be read: {cause}") from cause
    step = facts.pop("step")
    if step != checkpoint.step:
        raise CheckpointInvalid(f"{directory.name}: {STATE_FILE} is of step {step}, the manifest of step {checkpoint.step}")
    return CheckpointState(step=step, tensors=tensors, facts=facts)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
