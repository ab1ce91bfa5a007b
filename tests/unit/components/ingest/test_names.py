"""What names alone decide: which files are data, in a folder, in archives and in object storage alike."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from celebdit_testing.corpus import encoded
from PIL import Image

from components.errors import BadInput
from components.ingest.candidates import Candidate, Source, refused_by_name
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Budget, Limits
from components.ingest.sources.paths import open_path
from components.ingest.verdicts import Rejected

PNG = encoded(Image.new("RGB", (8, 8)))
BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)
DATA = (
    "a.jpg", "b.JPEG", "download (1).jfif", "IMG_1.JPE", "c.png", "deep/er/d.webp", "e.tiff", "trash/f.gif", "thumbnails/g.bmp",
    "recycle/h.jpg", "eaDir/i.jpg", "@home/j.jpg", "a.b/k.jpg", "lost/found/l.jpg", "no-suffix", "deep/6f1c0e", "m.jpg_large", "n.unknown",
    "o.HEIC", "p.avif", "q.jxl", "r.2024",
    "Old.photoslibrary/originals/0/s.jpeg", "resources/t.jpg", "previews/u.jpg", "found.jpg/v.jpg", "#w.jpg",
)  # fmt: skip
LEFT = (
    ".hidden.jpg", "._a.jpg", ".trashed-1699-IMG.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg/SYNOFILE_THUMB_M.jpg",
    "deep/@EADIR/a.jpg", ".thumbnails/normal/a.jpg", ".Trash-1000/files/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/S-1-5/a.jpg",
    "__MACOSX/a.jpg", "deep/.@__thumb/a.jpg", "@Recycle/a.jpg", "lost+found/a.jpg", "System Volume Information/a.jpg",
    ".git/a.png", ".stversions/a.jpg", "Photos Previews.lrdata/1/a.jpg", "LOST.DIR/1", "@tmp/a.jpg", "a.jpg_original", "a.jpg~",
    "Old.photoslibrary/resources/derivatives/a.jpeg", "iPhoto Library/Thumbnails/a.jpg", "CaptureOne/Cache/Thumbnails/a.jpg.cot",
    "FOUND.001/FILE0000.CHK", "@SynoEAStream/a", "Resource Frk/a.jpg", "_vti_cnf/a.jpg", "#a.jpg#", "a.jpg.orig", "deep/Icon\r",
    "readme.txt", "Thumbs.db", "desktop.ini", "a.jpg.txt", "clip.mov", "data.parquet",
)  # fmt: skip
UNREAD = {
    "photo.NEF": "unsupported_format",
    "deep/b.dng": "unsupported_format",
    "c.tga": "unsupported_format",
    "d.PCX": "unsupported_format",
    "old.zip": "nested_archive",
}


def packed(kind: str, files: dict[str, bytes], folder: Path) -> Path:
    """A folder, zip or tar with these files."""
    path = folder / "source"
    if kind == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def judged(source: Source, candidate: Candidate) -> str:
    """The verdict on a candidate, by a real worker where its source has none."""
    with DecoderPool(Limits(image_px=8, max_image_bytes=10**6, max_image_pixels=10**6, max_ratio=200), workers=1) as pool:
        pool.start(source.archive_path())
        ((_, verdict),) = pool.judge([candidate])
    return verdict.code if isinstance(verdict, Rejected) else "+".join(verdict.rules)


@pytest.fixture(params=["folder", "zip", "tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    prefix = "./" if request.param == "tar" else ""  # as `tar -c .` writes them
    return open_path(str(packed(request.param, dict.fromkeys([prefix + name for name in (*DATA, *LEFT, *UNREAD)], PNG), tmp_path)), 8, None)


def test_a_source_gives_its_data_and_nothing_that_a_program_left_beside_it(source: Source) -> None:
    refusals = {candidate.name.removeprefix("./"): candidate.refused for candidate in source.candidates(BUDGET)}
    assert {name for name, refused in refusals.items() if refused is None} == set(DATA)
    assert {name for name, refused in refusals.items() if refused is not None and refused.code == "ignored"} == set(LEFT)
    assert {name: refusals[name].code for name in UNREAD} == UNREAD  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_file_whose_name_leaves_it_open_is_no_image_if_its_content_is_none(tmp_path: Path, kind: str) -> None:
    source = open_path(
        str(packed(kind, {"a.png": PNG, "LICENCE": b"as is", "b.unknown": b"BM but no bitmap", "c": b""}, tmp_path)), 8, None
    )
    verdicts = {candidate.name: judged(source, candidate) for candidate in source.candidates(BUDGET)}
    assert verdicts == {"a.png": "as_is", "LICENCE": "ignored", "b.unknown": "ignored", "c": "ignored"}


def test_a_folder_of_nothing_but_leftovers_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("a.txt", "LICENCE", ".thumbnails/a.jpg", "@eaDir/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(BadInput, match="contains no images"):
        open_path(str(tmp_path), 8, None)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_source_of_nothing_but_an_archive_names_it(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadInput, match=r"contains no images, but the archive .*inner\.zip"):
        open_path(str(packed(kind, {"deep/inner.zip": b"PK\3\4", "readme.txt": b""}, tmp_path)), 8, None)


def test_the_folders_above_a_source_decide_nothing(tmp_path: Path) -> None:
    home = tmp_path / ".cache" / "@eaDir" / "faces"
    home.mkdir(parents=True)
    (home / "a.jpg").touch()
    assert [candidate.refused for candidate in open_path(str(home), 8, None).candidates(BUDGET)] == [None]


@pytest.mark.parametrize(
    ("name", "code"), [("../.x/a.jpg", "unsafe_name"), ("a.zip", "nested_archive"), (".x/a\\..\\b.jpg", "unsafe_name")]
)
def test_a_name_that_is_unsafe_or_an_archive_is_rejected_first(name: str, code: str) -> None:
    refused = refused_by_name(name)
    assert refused is not None
    assert refused.code == code


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_source_whose_images_are_all_left_out_says_why(tmp_path: Path, kind: str) -> None:
    path = packed(kind, {".cache/a.png": PNG, "readme.txt": b"text"}, tmp_path)
    with pytest.raises(BadInput, match=r"\.cache/a\.png is left out \(in \.cache, a hidden folder\)") as refused:
        open_path(str(path), 8, None)
    assert "name their folder" in str(refused.value.hint)


def test_a_link_to_nothing_is_not_said_to_leave_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "missing.png").symlink_to("../blobs/6f1c0e")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "away.png").symlink_to("/etc/passwd")
    details = {
        candidate.name: candidate.refused.detail for candidate in open_path(str(tmp_path), 8, None).candidates(BUDGET) if candidate.refused
    }
    assert details["missing.png"] == details["itself.png"] == "a link to nothing, or to itself: fetch what it stands for"
    assert "leaves the source" in details["away.png"]
