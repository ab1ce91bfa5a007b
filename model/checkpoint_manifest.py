"""Layout of a checkpoint on local disk, and its verification.

A directory `step-<n>` holds one safetensors file per group of tensors, `state.json` with everything else, and `MANIFEST.json` with the
sha256 and size of each. Promises: a directory that differs from its manifest by a byte, a missing file or an extra file is refused. Needs
no PyTorch, so that launchers can use it. Tensors are written and read in `checkpoint.py`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.canonical import canonical_json

FORMAT = 1
MANIFEST_FILE = "MANIFEST.json"
STATE_FILE = "state.json"


class CheckpointInvalid(ValueError):
    """A checkpoint is corrupt or incomplete. It must not be loaded."""


class UnsupportedCheckpointFormat(ValueError):
    """A checkpoint was written by another version. It may be complete, so it must not be deleted."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint on local disk."""

    directory: Path
    step: int
    digest: str
    files: dict[str, "FileEntry"]


@dataclass(frozen=True)
class FileEntry:
    """Sha256 and size of one file of a checkpoint."""

    sha256: str
    size_bytes: int


def directory_name(step: int) -> str:
    """Return the directory name of the checkpoint of `step`; names sort like steps."""
    return f"step-{step:09d}"


def file_entry(path: Path) -> FileEntry:
    """Return sha256 and size of the file at `path`."""
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def encode_manifest(step: int, files: dict[str, FileEntry]) -> bytes:
    """Return the bytes of MANIFEST.json, whose sha256 is the checkpoint's digest."""
    entries = {name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for name, entry in files.items()}
    return canonical_json({"format": FORMAT, "step": step, "files": entries})


def decode_manifest(raw: bytes) -> tuple[int, dict[str, FileEntry]]:
    """Return the step and the files of a manifest.

    Raises:
        CheckpointInvalid: if it is not a manifest, or a file name in it is not a plain name.
        UnsupportedCheckpointFormat: if another version wrote it.
    """
    try:
        decoded = json.loads(raw)
        if decoded["format"] != FORMAT:
            raise UnsupportedCheckpointFormat(f"checkpoint format {decoded['format']} is not {FORMAT}, the format that this version reads")
        files = {str(name): FileEntry(str(entry["sha256"]), int(entry["size_bytes"])) for name, entry in decoded["files"].items()}
        step = int(decoded["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        if isinstance(cause, UnsupportedCheckpointFormat):
            raise
        raise CheckpointInvalid(f"{MANIFEST_FILE} is not readable: {cause}") from cause
    if any("/" in name or "\\" in name or name.startswith(".") for name in files):
        raise CheckpointInvalid(f"{MANIFEST_FILE} names files outside its directory: {sorted(files)}")
    return step, files


def verify(directory: Path, *, is_sidecar: Callable[[str], bool] = lambda name: False) -> Checkpoint:
    """Check every file of the checkpoint in `directory` against its manifest; other files are allowed if `is_sidecar` accepts their name.

    Raises:
        CheckpointInvalid: naming the first file that is missing, extra or different.
    """
    try:
        raw = (directory / MANIFEST_FILE).read_bytes()
    except OSError as cause:
        raise CheckpointInvalid(f"{directory.name}: no {MANIFEST_FILE}") from cause
    step, files = decode_manifest(raw)
    present = {path.name for path in directory.iterdir() if path.name in files or not is_sidecar(path.name)} - {MANIFEST_FILE}
    for name in sorted(present ^ set(files)):
        raise CheckpointInvalid(f"{directory.name}: file {name} is {'extra' if name in present else 'missing'}")
    for name, entry in files.items():
        actual = file_entry(directory / name)
        if actual != entry:
            raise CheckpointInvalid(f"{directory.name}: {name} has sha256 {actual.sha256[:12]}, expected {entry.sha256[:12]}")
    return Checkpoint(directory=directory, step=step, digest=hashlib.sha256(raw).hexdigest(), files=files)


def list_checkpoints(root: Path) -> list[Path]:
    """List the checkpoint directories under `root`, newest first, unverified."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True) if root.is_dir() else []


def newest_valid(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint under `root` that verifies, or None."""
    for directory in list_checkpoints(root):
        try:
            return verify(directory)
        except (CheckpointInvalid, UnsupportedCheckpointFormat):
            continue
    return None


def remove_unpublished(root: Path) -> None:
    """Remove what killed calls of `checkpoint.publish` left under `root`; call it only while nothing else publishes there."""
    for retired in root.glob(".retired-*"):
        final = root / retired.name.removeprefix(".retired-").rsplit("-", 1)[0]
        if not final.exists():  # killed between the two renames
            retired.rename(final)
    for left in [*root.glob(".staging-*"), *root.glob(".retired-*")]:
        shutil.rmtree(left, ignore_errors=True)
