"""Files that are taken for archives of images and are something else: say what, and what to do.

Promises: a few hundred bytes are looked at, nothing is parsed.
"""

import re
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.image_formats import image_format

SPLIT_HINT = "join the parts of a split archive first, with `zip -s 0 NAME.zip --out whole.zip`, or `cat NAME.zip.* > whole.zip`"
_PACK_AGAIN = "unpack it and name the folder, or pack it again as zip or tar"
_FETCH_AGAIN = "sign in or accept the terms where it comes from, and fetch the file itself"
_ARCHIVES = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (b"MSCF\0\0\0\0", "a Windows cabinet"),
    (b"xar!", "an xar archive"),
    (b"StuffIt", "a StuffIt archive"),
    (b"SIT!", "a StuffIt archive"),
    (b"!<arch>\n", "an ar archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1\0\0", "an Arrow file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF-", "a PDF"),
)
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer in place of the file", "run `git lfs pull` where it was cloned"),
    (b"/annex/objects/", "a git-annex pointer in place of the file", "run `git annex get` where it was cloned"),
)
_SPLIT_MARKER = b"PK\x07\x08PK\x03\x04"
_SPLIT_NAME = re.compile(r"\.(z\d\d+|zip\.\d{2,}|7z\.\d{2,}|tar\.\d{2,}|\d{3}|part\d+\.rar|r\d\d)$", re.IGNORECASE)
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")
_HEAD_BYTES = 1024


def refuse_foreign(path: Path, label: str) -> None:
    """Raise if a file is of a kind that is often taken for an archive of images.

    Raises:
        BadInput: if it is intact and is not read. DataRefused: if it is only part of a file, or what came instead of it.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DataRefused(f"data.source {label} is empty", hint="fetch it again")
    if head.startswith(_SPLIT_MARKER) or _SPLIT_NAME.search(path.name):
        raise DataRefused(f"data.source {label} is a part of a split archive", hint=SPLIT_HINT)
    for magic, what in _ARCHIVES:
        if head.startswith(magic):
            raise BadInput(f"data.source {label} is {what}, which is not read", hint=_PACK_AGAIN)
    for begin, what, advice in _POINTERS:
        if head.startswith(begin):
            raise DataRefused(f"data.source {label} is {what}", hint=advice)
    if (image := image_format(head)) is not None:
        raise BadInput(f"data.source {label} is a single image ({image})", hint="name the folder that it is in, or an archive of images")
    _refuse_text(head, label)


def _refuse_text(head: bytes, label: str) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<!doctype html|<html|<head|<!--|<script|<meta", text, re.IGNORECASE):
        raise DataRefused(f"data.source {label} is an HTML page in place of an archive", hint=_FETCH_AGAIN)
    if text.startswith((b"<?xml", b"<Error>")):
        code = _ERROR_CODE.search(head)
        raise DataRefused(
            f"data.source {label} is an XML document in place of an archive{f', which says {code[1].decode()}' if code else ''}",
            hint=_FETCH_AGAIN,
        )
    if text[:1] in (b"{", b"[") and text.isascii() and "".join(text.decode("ascii").split()).isprintable():
        raise DataRefused(f"data.source {label} is a JSON text in place of an archive", hint=_FETCH_AGAIN)
