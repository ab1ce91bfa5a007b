"""What a folder may hold that a manifest describes: its files, all of them, and nothing else."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import DataRefused
from components.registry.version_manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, VersionManifest, check_folder

FILES = {"MLmodel": b"flavors: {}\n", "code/model/dit.py": b"x = 1\n", "artifacts/weights.safetensors": b"w" * 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def digest(folder: Path) -> str:
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1")
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest.digest


def test_a_manifest_names_size_and_sha256_of_every_file(folder: Path, digest: str) -> None:
    check_folder(folder, digest)
    manifest = VersionManifest.parse((folder / MANIFEST_FILE).read_bytes(), sha256=digest, what="it")
    assert {name: (entry.size_bytes, entry.sha256) for name, entry in manifest.files.items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()
    }


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
@pytest.mark.parametrize("change", ["one byte", "longer", "missing", "link", "folder", "fifo"])
def test_every_file_must_be_the_one_that_was_registered(folder: Path, digest: str, tmp_path: Path, name: str, change: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if change == "one byte":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "longer":
        path.write_bytes(data + b"\n")
    elif change == "link":  # to the very same bytes, which can be changed later
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "folder":
        path.mkdir()
        (path / "file").write_bytes(data)
    elif change == "fifo":
        os.mkfifo(path)
    with pytest.raises(DataRefused) as refused:
        check_folder(folder, digest)
    assert name in refused.value.message
    path.rename(tmp_path / "changed") if change != "missing" else None
    path.write_bytes(data)
    check_folder(folder, digest)


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "code/json.py", "code/model/__pycache__/dit.cpython-311.pyc", "artifacts/.hidden", "registered_model_meta"]
)
@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_a_file_that_was_added_is_refused(folder: Path, digest: str, name: str, kind: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "link":
        path.symlink_to(folder / "MLmodel")
    else:
        os.mkfifo(path)
    with pytest.raises(DataRefused) as refused:
        check_folder(folder, digest)
    assert name in refused.value.message


def test_a_linked_folder_is_refused(folder: Path, digest: str, tmp_path: Path) -> None:
    (folder / "code").rename(tmp_path / "code")
    (folder / "code").symlink_to(tmp_path / "code")
    with pytest.raises(DataRefused, match="'code' is a link"):
        check_folder(folder, digest)


def test_another_manifest_that_fits_the_changed_files_is_refused(folder: Path, digest: str) -> None:
    (folder / "code/model/dit.py").write_bytes(b"x = 2\n")
    fitting = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1")
    (folder / MANIFEST_FILE).write_bytes(fitting.to_bytes())
    check_folder(folder, fitting.digest)
    with pytest.raises(DataRefused, match=r"MANIFEST\.json' is not the one that was registered"):
        check_folder(folder, digest)


def test_the_manifest_of_a_download_must_be_the_one_in_the_folder(folder: Path, digest: str) -> None:
    """Readers that have the manifest from elsewhere do not read that of the folder; a server of the folder does."""
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1")
    assert manifest.digest == digest, "it is not among its own files"
    manifest.check(folder, "it")
    data = (folder / MANIFEST_FILE).read_bytes()
    (folder / MANIFEST_FILE).write_bytes(data.replace(b"cccc", b"dddd", 1))
    with pytest.raises(DataRefused, match=r"'MANIFEST\.json' is not the file that was registered"):
        manifest.check(folder, "it")


def test_a_manifest_of_any_length_is_not_read(folder: Path, digest: str) -> None:
    os.truncate(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(DataRefused, match=r"MANIFEST\.json is not a manifest"):
        check_folder(folder, digest)


def test_equal_files_give_equal_bytes_in_any_order(folder: Path) -> None:
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1")
    backwards = manifest.model_copy(update={"files": dict(reversed(manifest.files.items()))})
    assert list(backwards.files) != list(manifest.files)
    assert backwards.to_bytes() == manifest.to_bytes()


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"signature": "x"}, {"files": {"MLmodel": {"sha256": "0" * 64, "size_bytes": 1, "mode": 7}}}]
)
def test_a_manifest_of_a_newer_format_is_refused_with_what_to_do(folder: Path, change: dict[str, object]) -> None:
    known = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1").model_dump(mode="json")
    data = json.dumps(known | change).encode()
    with pytest.raises(DataRefused, match="that this version of celebdit can read") as refused:
        VersionManifest.parse(data, sha256=hashlib.sha256(data).hexdigest(), what="the manifest")
    assert "newer" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sizes: sizes.pop("MLmodel"), "lacks 'MLmodel'"),
        (lambda sizes: sizes.update({"code/json.py": 3}), "was not registered: 'code/json.py'"),
        (lambda sizes: sizes.update({"MLmodel": 13}), "'MLmodel' has 13 bytes, 12 were registered"),
    ],
)
def test_a_listing_shows_what_is_missing_before_anything_is_downloaded(
    folder: Path, change: Callable[[dict[str, int | None]], object], reason: str
) -> None:
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c" * 64, ema="0.1")
    sizes: dict[str, int | None] = {name: len(data) for name, data in FILES.items()}
    sizes[MANIFEST_FILE] = None
    manifest.check_sizes(sizes, "version 1")
    change(sizes)
    with pytest.raises(DataRefused, match=reason):
        manifest.check_sizes(sizes, "version 1")


def test_the_check_imports_nothing_that_a_version_could_replace() -> None:
    """The server checks a version before it loads MLflow; the packed `model` must not be hidden by the installed one."""
    seen = subprocess.run(
        [sys.executable, "-P", "-c", "import components.serving.server, sys; print(sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'components.registry.version_manifest'" in seen
    for name in ("'model'", "'mlflow'", "'torch'", "'boto3'", "'pandas'"):
        assert name not in seen
