"""Sources that cannot be opened: of a wrong form, missing, unreadable, without images, or without consent."""

import codecs
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.corpus import PX
from celebdit_testing.local_sources import BUDGET, config, make_source, opened

from components.errors import BadInput
from components.ingest.sources.open_source import open_source, require_consent
from components.ingest.sources.synthetic import encode_face


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
