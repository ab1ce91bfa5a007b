"""What a source on this machine gives: the same images from every kind, and a verdict for every other entry."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.corpus import PX, write_hostile_tar, write_hostile_zip
from celebdit_testing.local_sources import BUDGET, make_source, opened, read, verdicts

from components.ingest.candidates import printable_name, refused_by_name
from components.ingest.sources.synthetic import encode_face
from components.ingest.sources.zips import ZipSource


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_kind_of_source_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    path = make_source(kind, tmp_path)
    source = opened(path)
    data_by_name = {c.name.rsplit("/", 1)[-1]: c.data for c in read(source) if c.refused is None}
    assert data_by_name == {f"{index:05d}.jpg": encode_face(0, index, PX) for index in range(4)}
    assert verdicts(source.candidates(BUDGET))["readme.txt"] == "ignored"
    assert source.fingerprint() == opened(make_source(kind, tmp_path)).fingerprint()
    assert opened(f"file://{path}").fingerprint() == source.fingerprint()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_fingerprint_changes_with_the_content(tmp_path: Path, kind: str) -> None:
    path = make_source(kind, tmp_path)
    before = opened(path).fingerprint()
    target = path / "deep/er/00000.jpg" if kind == "folder" else path
    data = bytearray(target.read_bytes())
    data[600] ^= 1
    target.write_bytes(data)
    assert opened(path).fingerprint() != before


@pytest.mark.parametrize(("kind", "write"), [("zip", write_hostile_zip), ("tar", write_hostile_tar), ("tar.gz", write_hostile_tar)])
def test_every_hostile_entry_has_its_verdict_and_nothing_is_written(
    tmp_path: Path, kind: str, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"hostile.{kind}"
    expected = write(path, "w") if kind == "tar" else write(path)
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    before = {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
    assert verdicts(read(opened(path))) == {printable_name(name): verdict for name, verdict in expected.items()}
    assert {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")} == before
    assert not Path("/tmp/absolute.jpg").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_second_entry_of_a_name_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"twice.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(2):
                archive.writestr("same.jpg", encode_face(0, index, PX))
    else:
        with tarfile.open(path, "w") as tar:
            for index in range(2):
                header = tarfile.TarInfo("same.jpg")
                header.size = len(encode_face(0, index, PX))
                tar.addfile(header, io.BytesIO(encode_face(0, index, PX)))
    first, second = read(opened(path))
    assert (first.refused, first.data) == (None, encode_face(0, 0, PX))
    assert second.refused is not None
    assert second.refused.code == "duplicate_name"


def test_a_folder_follows_no_link_and_opens_nothing_but_files(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    tree.mkdir()
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(encode_face(0, 1, PX))
    (tree / "a.jpg").write_bytes(encode_face(0, 0, PX))
    (tree / "linked").symlink_to(outside)
    (tree / "link.jpg").symlink_to(outside / "secret.jpg")
    os.mkfifo(tree / "pipe.jpg")
    (tree / os.fsdecode(b"not-utf8-\xff.jpg")).write_bytes(encode_face(0, 2, PX))
    assert verdicts(opened(tree).candidates(BUDGET)) == {
        "a.jpg": "as_is",
        "link.jpg": "link",
        "linked": "link",
        "not-utf8-\\udcff.jpg": "as_is",
        "pipe.jpg": "special_file",
    }


@pytest.mark.parametrize("name", ["a.jpg", "deep/er/a.JPEG", "with space.png", "ümlaut.webp", "a..b.jpg", "...jpg"])
def test_ordinary_names_are_not_refused(name: str) -> None:
    assert refused_by_name(name) is None


def test_names_are_made_printable_and_short() -> None:
    assert printable_name("\x1b[31mred\udcff\u202e.jpg") == "\\x1b[31mred\\udcff\\u202e.jpg"
    assert len(printable_name("n" * 10_000)) == 400


def test_a_small_zip_says_how_many_images_it_holds(tmp_path: Path) -> None:
    source = opened(make_source("zip", tmp_path))
    assert isinstance(source, ZipSource)
    assert source.count() == 4
