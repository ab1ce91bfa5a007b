"""Symbolic links in a folder of images.

Promises: a link is followed only to a regular file inside the same root; a link to a folder, to another link's cycle or out of the root is
not. The cache of the Hugging Face hub is such a folder: `snapshots/REVISION/FILE` links to `blobs/DIGEST`.
"""

import stat
from pathlib import Path

from components.errors import BadInput

_BLOBS, _SNAPSHOTS, _REFS = "blobs", "snapshots", "refs"


def target_of(path: Path, root: Path) -> Path | None:
    """Return the regular file inside `root`, an absolute path without links, that a link leads to, or None."""
    try:
        target = path.resolve(strict=True)
        inside = target.is_relative_to(root) and stat.S_ISREG(target.lstat().st_mode)
    except (OSError, RuntimeError):  # a cycle, or nothing there
        return None
    return target if inside else None


def snapshot_of(folder: Path) -> tuple[Path, Path]:
    """Return (the folder whose files are read, the root that its links may lead to) for a folder that was named as a source.

    Of the hub's cache of a dataset, or of one of its snapshots, that is the snapshot and the cache; of any other folder, itself.

    Raises:
        BadInput: if the cache has several snapshots, and no `refs/main` says which one counts.
    """
    folder = folder.absolute()
    if _is_cache(folder):
        return _current_snapshot(folder), folder.resolve()
    cache = folder.parent.parent
    if folder.parent.name == _SNAPSHOTS and _is_cache(cache):
        return folder, cache.resolve()
    return folder, folder.resolve()


def _is_cache(folder: Path) -> bool:
    return (folder / _BLOBS).is_dir() and (folder / _SNAPSHOTS).is_dir() and "--" in folder.name


def _current_snapshot(cache: Path) -> Path:
    snapshots = sorted(path for path in (cache / _SNAPSHOTS).iterdir() if path.is_dir() and not path.is_symlink())
    if len(snapshots) == 1:
        return snapshots[0]
    main = cache / _REFS / "main"
    revision = main.read_text(errors="replace").strip() if main.is_file() and main.stat().st_size < 1000 else ""
    chosen = next((path for path in snapshots if path.name == revision), None)
    if chosen is None:
        raise BadInput(
            f"data.source {cache} has {len(snapshots)} snapshots",
            hint=f"name one of them: {cache / _SNAPSHOTS}/REVISION, or copy it with `cp -rL`",
        )
    return chosen
