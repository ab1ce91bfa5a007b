"""What names alone decide: which files are data, in a folder, in archives and in object storage alike."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from components.errors import BadInput
from components.ingest.candidates import Source, left_out_by_name, refused_by_name
from components.ingest.limits import Budget
from components.ingest.sources.paths import open_path

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)
DATA = (
    "a.jpg", "b.JPEG", "download (1).jfif", "IMG_1.JPE", "c.png", "deep/er/d.webp", "e.tiff", "trash/f.gif", "thumbnails/g.bmp",
    "recycle/h.jpg", "eaDir/i.jpg", "@home/j.jpg", "a.b/k.jpg", "lost/found/l.jpg",
)  # fmt: skip
LEFT = (
    ".hidden.jpg", "._a.jpg", ".trashed-1699-IMG.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg/SYNOFILE_THUMB_M.jpg",
    "deep/@EADIR/a.jpg", ".thumbnails/normal/a.jpg", ".Trash-1000/files/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/S-1-5/a.jpg",
    "__MACOSX/a.jpg", "deep/.@__thumb/a.jpg", "@Recycle/a.jpg", "lost+found/a.jpg", "System Volume Information/a.jpg",
    ".git/a.png", ".stversions/a.jpg",
    "readme.txt", "Thumbs.db", "noname", "desktop.ini", "a.jpg.txt",
)  # fmt: skip
OTHER_FORMATS = ("a.HEIC", "b.heif", "c.avif", "d.jxl", "e.ppm", "deep/f.JP2", "g.tga")


@pytest.fixture(params=["folder", "zip", "tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    folder = tmp_path / "source"
    names = [*DATA, *LEFT, *OTHER_FORMATS]
    if request.param == "folder":
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data.getvalue())
    elif request.param == "zip":
        with zipfile.ZipFile(folder, "w") as packed:
            for name in names:
                packed.writestr(name, data.getvalue())
    else:
        with tarfile.open(folder, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(f"./{name}")  # as `tar -c .` writes them
                info.size = len(data.getvalue())
                archive.addfile(info, io.BytesIO(data.getvalue()))
    return open_path(str(folder), 8, None)


def test_a_source_gives_its_data_and_nothing_that_a_program_left_beside_it(source: Source) -> None:
    refusals = {candidate.name.removeprefix("./"): candidate.refused for candidate in source.candidates(BUDGET)}
    assert {name for name, refused in refusals.items() if refused is None} == set(DATA)
    assert {name for name, refused in refusals.items() if refused is not None and refused.code == "ignored"} == set(LEFT)
    assert {name for name, refused in refusals.items() if refused is not None and refused.code == "unsupported_format"} == set(
        OTHER_FORMATS
    )


def test_a_folder_of_nothing_but_other_formats_and_leftovers_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("a.heic", ".thumbnails/a.jpg", "@eaDir/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(BadInput, match="contains no images"):
        open_path(str(tmp_path), 8, None)


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


def test_the_detail_says_what_to_do_about_another_format() -> None:
    refused = left_out_by_name("IMG_1.HEIC")
    assert refused is not None
    assert refused.detail == "heic is not read; convert it to JPEG or PNG"
