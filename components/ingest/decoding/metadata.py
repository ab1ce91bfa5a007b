"""An image without its metadata, for one that Pillow refuses because of them.

Promises: pure; pixels, transparency and the number of frames are those of the image; EXIF data and XMP stay if they can be read, for the
orientation.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

BROKEN = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    BufferError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's parsers raise on hostile bytes; MemoryError has a verdict of its own."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_JPEG_BEGIN, _JPEG_SCAN = b"\xff\xd8", 0xDA
_JPEG_EXIF = 0xE1
_JPEG_XMP, _PNG_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"XML:com.adobe.xmp\0\0"
"""How XMP begins; that of a PNG without compression, as the specification of XMP demands."""
_JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application segments and comments; not JFIF's (E0) and Adobe's (EE), which say what the colours mean."""
_JFIF, _JFIF_BYTES = 0xE0, 16
"""JFIF's segment, and the size below which libjpeg takes no notice of it."""


def without_metadata(data: bytes) -> bytes | None:
    """Return a JPEG or PNG without segments or chunks that do not describe pixels; None for anything else, and if there are none."""
    if data.startswith(_PNG):
        kept = _PNG + b"".join(_png_chunks(data))
    elif data.startswith(_JPEG_BEGIN):
        kept = _JPEG_BEGIN + b"".join(_jpeg_parts(data))
    else:
        return None
    return kept if len(kept) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at + 8 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        content = data[at + 8 : end - 4]
        if kind in _PNG_KEPT or (kind == b"eXIf" and _is_readable(content)) or (kind == b"iTXt" and _is_xmp(content, _PNG_XMP)):
            yield data[at:end]
        at = end


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    at = len(_JPEG_BEGIN)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _JPEG_SCAN:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        is_exif = marker == _JPEG_EXIF and data[at + 4 : at + 10] == b"Exif\0\0"
        is_xmp = marker == _JPEG_EXIF and _is_xmp(data[at + 4 : end], _JPEG_XMP)
        unused = marker in _JPEG_METADATA or (marker == _JFIF and end - at - 2 < _JFIF_BYTES)
        if not unused or is_xmp or (is_exif and _is_readable(data[at + 4 : end])):
            yield data[at:end]
        at = end
    yield data[at:]


def _is_xmp(content: bytes, begin: bytes) -> bool:
    """Return whether metadata that begin like XMP have an orientation."""
    return content.startswith(begin) and b"tiff:Orientation" in content


def _is_readable(exif: bytes) -> bool:
    try:
        tags = Image.Exif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
        return tags.get(274) is not None
    except Exception:  # Pillow raises almost anything on damaged EXIF data
        return False
