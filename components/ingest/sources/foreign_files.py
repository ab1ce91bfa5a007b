"""Files that are taken for archives of images and are something else: say what, and what to do.

Promises: a few hundred bytes are looked at, nothing is parsed.
"""

import os
import re
from pathlib import Path
from typing import IO

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
    (b"\x1f\x9d", "compressed with `compress`"),
    (b"\x1f\xa0", "compressed with `compress`"),
    (b"LZIP", "compressed with lzip"),
    (b"\x89LZO\0\r\n", "compressed with lzop"),
    (b"\x5d\0\0", "compressed with lzma"),
    (b"\x60\xea", "an ARJ archive"),
    (b"MSWIM\0\0\0", "a Windows image"),
    (b"hsqs", "a SquashFS file system"),
    (b"07070", "a cpio archive"),
    (b"\xc7\x71", "a cpio archive"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
)
TAR_MAGIC_AT, TAR_MAGIC = 257, b"ustar"
_INSIDE = ((2, b"-lh5-", "an LHA archive"), (7, b"**ACE**", "an ACE archive"), (32769, b"CD001", "an ISO 9660 image"))
"""Marks after the first bytes."""
_DMG_BYTES, _DMG = 512, b"koly"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer in place of the file", "run `git lfs pull` where it was cloned"),
    (b"/annex/objects/", "a git-annex pointer in place of the file", "run `git annex get` where it was cloned"),
)
_ZIP = b"PK\3\4"
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
        inside = None if head.startswith(_ZIP) else _found_inside(file)
    if not head:
        raise DataRefused(f"data.source {label} is empty", hint="fetch it again")
    if head.startswith(_SPLIT_MARKER) or _SPLIT_NAME.search(path.name):
        raise DataRefused(f"data.source {label} is a part of a split archive", hint=SPLIT_HINT)
    if head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):  # which begins with the name of a file, and that may be like any mark
        return
    for magic, what in _ARCHIVES:
        if head.startswith(magic):
            raise BadInput(f"data.source {label} is {what}, which is not read", hint=_PACK_AGAIN)
    if inside is not None:
        raise BadInput(f"data.source {label} is {inside}, which is not read", hint=_PACK_AGAIN)
    for begin, what, advice in _POINTERS:
        if head.startswith(begin):
            raise DataRefused(f"data.source {label} is {what}", hint=advice)
    if (image := image_format(head)) is not None:
        raise BadInput(f"data.source {label} is a single image ({image})", hint="name the folder that it is in, or an archive of images")
    _refuse_text(head, label)


def _found_inside(file: IO[bytes]) -> str | None:
    """Return what a file is by marks that are not at its begin."""
    size_bytes = file.seek(0, os.SEEK_END)
    for at, magic, what in (*_INSIDE, (size_bytes - _DMG_BYTES, _DMG, "a disk image of macOS")):
        file.seek(max(at, 0))
        if file.read(len(magic)) == magic:
            return what
    return None


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
