"""Sources on this machine: every kind gives the same images, hostile entries get their verdict, and nothing is written anywhere."""

import codecs
import gzip
import io
import os
import shutil
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.corpus import PX, write_hostile_tar, write_hostile_zip

from components.errors import BadInput, DataRefused
from components.ingest.candidates import Candidate, Source, printable_name, refused_by_name
from components.ingest.config import DataConfig
from components.ingest.limits import Budget
from components.ingest.sources.open_source import open_source, require_consent
from components.ingest.sources.synthetic import encode_face
from components.ingest.sources.zips import ZipSource
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import EntryDamaged, read_zip_entry

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {"name": "faces", "source": "synthetic://?count=4", "image_px": PX}
    return DataConfig(**{**values, **changes})


def opened(source: str | Path, **changes: Any) -> Source:
    source_reader = open_source(config(source=str(source), **changes))
    assert source_reader is not None
    return source_reader


def read(source: Source, budget: Budget = BUDGET) -> Iterator[Candidate]:
    """The candidates of a source with their bytes, those of an archive read as a worker does."""
    archive = source.archive_path()
    with archive.open("rb") if archive else nullcontext() as file:
        for candidate in source.candidates(budget):
            if candidate.packed is None or file is None:
                yield candidate
                continue
            try:
                data, _ = read_zip_entry(file.fileno(), candidate.packed, limit=budget.max_image_bytes + 1)
                yield candidate._replace(data=data, packed=None)
            except EntryDamaged as damaged:
                yield candidate._replace(refused=Rejected("damaged_entry", str(damaged)), packed=None)


def verdicts(candidates: Iterator[Candidate]) -> dict[str, str]:
    return {printable_name(c.name): c.refused.code if c.refused else "as_is" for c in candidates}


def make_source(kind: str, folder: Path) -> Path:
    images = {f"deep/er/{index:05d}.jpg": encode_face(0, index, PX) for index in range(4)}
    clutter = {"readme.txt": b"hello", "__MACOSX/._00000.jpg": b"junk", "deep/._00001.jpg": b"junk"}
    if kind == "folder":
        for name, data in (images | clutter).items():
            path = folder / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / "tree"
    path = folder / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (images | clutter).items():
                archive.writestr(zipfile.ZipInfo(name, date_time=(2000, 1, 1, 0, 0, 0)), data)
        return path
    with tarfile.open(path, "w:" + kind[4:]) as tar:  # type: ignore[call-overload]
        for name, data in (images | clutter).items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    if kind == "tar.gz":
        with path.open("r+b") as file:  # gzip notes the time; the same source again is to be the same bytes
            file.seek(4)
            file.write(bytes(4))
    return path


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


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_at_most_one_byte_more_than_the_budget_is_read(tmp_path: Path, kind: str) -> None:
    small = Budget(max_image_bytes=100, max_total_bytes=2**32, max_entries=100, max_ratio=200)
    assert max(len(candidate.data) for candidate in read(opened(make_source(kind, tmp_path)), small)) == 101


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


def zip_of(path: Path, entries: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(entries):
            archive.writestr(f"{index:07d}.jpg", b"")
    return path


def test_too_many_entries_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    small = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=99, max_ratio=200)
    with pytest.raises(DataRefused, match="more than 99 entries"):
        next(opened(zip_of(tmp_path / "many.zip", 100)).candidates(small))
    assert len(list(opened(zip_of(tmp_path / "few.zip", 99)).candidates(small))) == 99


def many_entries(path: Path, count: int) -> None:
    """Write a zip whose directory has `count` records; all point at one empty file."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 11, 0) + b"0000000.jpg"
    record = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0)
    records = b"".join(record + b"%07d.jpg" % index for index in range(count))
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(records), len(local))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + len(records), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(local + records + end64 + locator + end)


@pytest.mark.fault
@pytest.mark.slow
def test_too_many_entries_are_refused_in_little_memory(tmp_path: Path) -> None:
    many_entries(tmp_path / "many.zip", 300_000)
    tracemalloc.start()
    with pytest.raises(DataRefused, match="more than 200000 entries"):
        list(opened(tmp_path / "many.zip").candidates(config().budget()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_a_tar_of_many_entries_takes_no_more_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("empty.txt").tobuf(tarfile.USTAR_FORMAT)
    with gzip.open(tmp_path / "many.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(header * 100)
        file.write(bytes(1024))
    tracemalloc.start()
    number = sum(1 for _ in opened(tmp_path / "many.tar.gz", max_ratio=10**6).candidates(BUDGET))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == 20_000
    assert peak < 8 * 2**20


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("zeros.bmp")
    header.size = 200 * 2**20
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(200):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    with pytest.raises(DataRefused, match="unpacks to more than 200 times its size"):
        list(opened(tmp_path / "bomb.tar.gz").candidates(BUDGET))
    with pytest.raises(DataRefused, match="unpacks to more than 10000 bytes"):
        list(opened(make_source("tar", tmp_path)).candidates(Budget(10**6, 10_000, 100, 200)))
    with pytest.raises(DataRefused, match="unpacks to more than 5000 bytes"):
        list(opened(make_source("zip", tmp_path)).candidates(Budget(10**6, 5000, 100, 200)))
    with pytest.raises(DataRefused, match="has more than 5000 bytes"):
        list(opened(make_source("folder", tmp_path)).candidates(Budget(10**6, 5000, 100, 200)))


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "liar.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataRefused, match="a header claims 8589934592 bytes"):
        list(opened(tmp_path / "liar.tar").candidates(BUDGET))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("kept_share", [0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused_completely(tmp_path: Path, kind: str, kept_share: float) -> None:
    path = make_source(kind, tmp_path)
    data = path.read_bytes()
    end = int(len(data) * kept_share) // 512 * 512 if kind == "tar" else int(len(data) * kept_share)
    path.write_bytes(data[: min(end, 10 * 512 + 512 * int(8 * kept_share))] if kind == "tar" else data[:end])
    with pytest.raises(DataRefused, match="is corrupt"):
        list(opened(path).candidates(BUDGET))


def test_a_tar_with_a_broken_header_inside_does_not_just_end_there(tmp_path: Path) -> None:
    path = make_source("tar", tmp_path)
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[second + 10] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataRefused, match="a header is broken"):
        list(opened(path).candidates(BUDGET))


def test_a_truncated_zip_is_distinguished_from_a_file_of_another_format(tmp_path: Path) -> None:
    path = make_source("zip", tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataRefused, match="truncated or no zip") as refused:
        opened(path)
    assert refused.value.exit_code == 3
    (tmp_path / "image.bin").write_bytes(b"\1" * 2000)
    with pytest.raises(BadInput, match="neither a folder nor a zip or tar archive"):
        opened(tmp_path / "image.bin")


def test_a_zip_with_a_name_that_is_flagged_as_utf8_and_is_not_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "names.zip", "w") as archive:
        archive.writestr("ö.jpg", b"")
    path = tmp_path / "names.zip"
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xff\xfe"))
    with pytest.raises(DataRefused, match="is flagged as UTF-8 and is not"):
        opened(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/does/not/exist", "does not exist"),
        ("file:///does/not/exist", "does not exist"),
        ("ftp://host/x.zip", "unknown scheme 'ftp'"),
        ("http://169.254.169.254/latest", "unknown scheme 'http'"),
        ("file://host/share/x.zip", "names another machine"),
        ("synthetic://?cuont=3", "has no parameter cuont"),
        ("synthetic://x", "takes parameters after a . only, not 'x'"),
        ("synthetic://count=4", "takes parameters after a . only, not 'count=4'"),
        ("synthetic:///?count=4", "takes parameters after a . only, not '/'"),
        ("synthetic://?count=4&count=5", "has 2 values of count"),
        ("synthetic://?count=1_000", "takes whole numbers, and count is '1_000'"),
        ("synthetic://?count=" + "9" * 4000, "takes whole numbers"),
        ("synthetic://?count=4#faces", "takes whole numbers, and count is '4#faces'"),
        ("synthetic://?count", "takes whole numbers, and count is ''"),
        ("synthetic://?count=many", "takes whole numbers"),
        ("synthetic://?count=0", "takes a count from 1"),
        ("synthetic://?size=100000", "takes a size from 8 to 2048"),
        ("synthetic://?seed=-1", "takes a seed from 0"),
        ("s3://", "is not an S3 location"),
        ("s3://Bucket/x.zip", "is not an S3 location"),
        ("s3://bucket/../x.zip", "is not an S3 location"),
        ("kaggle://only-one-part", "is not a Kaggle dataset"),
        ("kaggle://owner/name/versions/zero", "is not a Kaggle dataset"),
        ("kaggle://owner/../name", "is not a Kaggle dataset"),
    ],
)
def test_a_source_that_cannot_be_opened_is_named(source: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        open_source(config(source=source))
    assert refused.value.exit_code == 2
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("source", ["s3://bucket/faces.zip", "s3://bucket/a folder/with ümlaut/", "kaggle://owner/name/versions/3"])
def test_a_source_elsewhere_is_only_checked_for_its_form(source: str) -> None:
    open_source(config(source=source))


@pytest.fixture
def not_root() -> Iterator[Path]:
    """A folder that all users can read; a process of root, who reads everything, becomes the user nobody."""
    was, folder = os.geteuid(), Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    codecs.lookup("cp437")  # nobody may not be allowed to read Python's own files, and a codec not found once is never found
    if was == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(was)
        for inner in folder.iterdir():
            inner.chmod(0o755)
        shutil.rmtree(folder)


def test_a_source_without_the_right_to_read_it_is_named(not_root: Path) -> None:
    path = make_source("zip", not_root)
    opened(path)
    path.chmod(0)
    with pytest.raises(BadInput, match="cannot be read"):
        opened(path)


def test_a_folder_inside_that_cannot_be_listed_is_not_left_out_without_a_word(not_root: Path) -> None:
    for name in ("photos", "private", "lost+found"):
        (not_root / name).mkdir()
        (not_root / name / "a.jpg").write_bytes(encode_face(0, 0, PX))

    def verdicts() -> dict[str, str | None]:
        source = opened(not_root)
        source.fingerprint()
        return {candidate.name: candidate.refused and candidate.refused.code for candidate in source.candidates(BUDGET)}

    (not_root / "lost+found").chmod(0)
    assert verdicts() == {"photos/a.jpg": None, "private/a.jpg": None, "lost+found": "ignored"}
    (not_root / "private").chmod(0)
    with pytest.raises(BadInput, match=r"cannot be read completely: .*private: Permission denied"):
        verdicts()
    (not_root / "private").chmod(0o444)  # may be listed, but nothing in it may be looked at
    assert verdicts() == {"photos/a.jpg": None, "private/a.jpg": "unreadable", "lost+found": "ignored"}


def test_a_folder_or_zip_without_images_says_which_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("empty", "texts.zip"):
        with pytest.raises(BadInput, match="contains no images") as raised:
            opened(tmp_path / name)
        assert ".jpg" in str(raised.value.hint)


def test_celeba_needs_somebodys_consent() -> None:
    kaggle = "kaggle://badasstechie/celebahq-resized-256x256"
    for changes in ({"licence": "CelebA-HQ research only"}, {"source": kaggle}):
        with pytest.raises(BadInput, match="must be accepted") as refused:
            require_consent(config(**changes))
        assert "--accept-license NAME" in str(refused.value.hint)
        require_consent(config(**changes, licence_accepted_by="somebody"))
    require_consent(config(licence="CC0-1.0"))


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
