"""A checkpoint on local disk: a directory that is whole or not there, and that is verified before anything in it is believed.

Layout of `step-<n>`: one safetensors file per group of tensors, `state.json` with everything else, and `MANIFEST.json` with the sha256 and
size of each. Promises: `publish` makes the directory visible in one rename after everything in it is on disk; `read` returns exactly what
was published or raises; equal states have equal digests, whoever wrote them and when. Uploading is not done here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import canonical_json

FORMAT = 1
MANIFEST_FILE = "MANIFEST.json"
STATE_FILE = "state.json"
Crash = Callable[[str], None]
"""Called with the name of each point of the protocol; a test raises from it to play a crash there."""


class CheckpointInvalid(ValueError):
    """A checkpoint is missing a part, or a part is not what its manifest says. It must not be loaded."""


class CheckpointOfAnotherFormat(ValueError):
    """A checkpoint was written by another version. It is whole, so it must not be thrown away either."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds: groups of named tensors (one file each), and facts that fit into JSON.

    `notes` are said beside it (what it cost so far): they are not written by `publish` and do not enter its digest.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint on local disk."""

    directory: Path
    step: int
    digest: str
    files: dict[str, "FileEntry"]


@dataclass(frozen=True)
class FileEntry:
    """Identity of one file of a checkpoint."""

    sha256: str
    size_bytes: int


def directory_name(step: int) -> str:
    """Return the name under which the checkpoint of `step` is published; names sort like steps."""
    return f"step-{step:09d}"


def publish(state: CheckpointState, root: Path, *, crash: Crash = lambda point: None) -> Checkpoint:
    """Write `state` under `root`; a checkpoint of the same step that is already there is replaced.

    A crash at any moment leaves the previous checkpoints untouched, and this one absent or whole.
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
        files = {path.name: _identify(path) for path in sorted(staging.iterdir())}
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


def encode_manifest(step: int, files: dict[str, FileEntry]) -> bytes:
    """Return the bytes of MANIFEST.json, whose sha256 is the checkpoint's digest."""
    entries = {name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for name, entry in files.items()}
    return canonical_json({"format": FORMAT, "step": step, "files": entries})


def decode_manifest(raw: bytes) -> tuple[int, dict[str, FileEntry]]:
    """Return step and files of a manifest.

    Raises:
        CheckpointInvalid: if it is not a manifest, or a file name in it is not a plain name.
        CheckpointOfAnotherFormat: if another version wrote it.
    """
    try:
        decoded = json.loads(raw)
        if decoded["format"] != FORMAT:
            raise CheckpointOfAnotherFormat(f"checkpoint format {decoded['format']} is not {FORMAT}, the one that this version reads")
        files = {str(name): FileEntry(str(entry["sha256"]), int(entry["size_bytes"])) for name, entry in decoded["files"].items()}
        step = int(decoded["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        if isinstance(cause, CheckpointOfAnotherFormat):
            raise
        raise CheckpointInvalid(f"{MANIFEST_FILE} is not readable: {cause}") from cause
    if any("/" in name or "\\" in name or name.startswith(".") for name in files):
        raise CheckpointInvalid(f"{MANIFEST_FILE} names files outside its directory: {sorted(files)}")
    return step, files


def verify(directory: Path) -> Checkpoint:
    """Check every file of the checkpoint in `directory` against its manifest.

    Raises:
        CheckpointInvalid: naming the first file that is missing, extra or different.
    """
    try:
        raw = (directory / MANIFEST_FILE).read_bytes()
    except OSError as cause:
        raise CheckpointInvalid(f"{directory.name}: no {MANIFEST_FILE}") from cause
    step, files = decode_manifest(raw)
    present = {path.name for path in directory.iterdir()} - {MANIFEST_FILE}
    for name in sorted(present ^ set(files)):
        raise CheckpointInvalid(f"{directory.name}: file {name} is {'extra' if name in present else 'missing'}")
    for name, entry in files.items():
        found = _identify(directory / name)
        if found != entry:
            raise CheckpointInvalid(f"{directory.name}: {name} has sha256 {found.sha256[:12]}, its manifest says {entry.sha256[:12]}")
    return Checkpoint(directory=directory, step=step, digest=hashlib.sha256(raw).hexdigest(), files=files)


def read(directory: Path, *, groups: Iterable[str] | None = None) -> CheckpointState:
    """Verify the checkpoint in `directory` and load it, or only the named `groups` of tensors.

    Raises:
        CheckpointInvalid: if it is not whole.
    """
    checkpoint = verify(directory)
    facts = json.loads((directory / STATE_FILE).read_bytes())
    wanted = groups if groups is not None else [Path(name).stem for name in checkpoint.files if name.endswith(".safetensors")]
    tensors = {}
    for group in wanted:
        try:
            tensors[group] = load_file(directory / f"{group}.safetensors")
        except (SafetensorError, OSError) as cause:
            raise CheckpointInvalid(f"{directory.name}: {group}.safetensors cannot be read: {cause}") from cause
    step = facts.pop("step")
    if step != checkpoint.step:
        raise CheckpointInvalid(f"{directory.name}: {STATE_FILE} is of step {step}, the manifest of step {checkpoint.step}")
    return CheckpointState(step=step, tensors=tensors, facts=facts)


def published(root: Path) -> list[Path]:
    """List the checkpoint directories under `root`, newest first, unverified."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True) if root.is_dir() else []


def newest_valid(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint under `root` that verifies, or None."""
    for directory in published(root):
        try:
            return verify(directory)
        except (CheckpointInvalid, CheckpointOfAnotherFormat):
            continue
    return None


def _identify(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
