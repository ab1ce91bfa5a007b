"""Archives that are truncated or damaged are refused completely."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from celebdit_testing.local_sources import BUDGET, make_source, opened

from components.errors import BadInput, DataRefused


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
