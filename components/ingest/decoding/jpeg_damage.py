"""Find damage inside a JPEG, which Pillow decodes to grey or shifted areas without an error.

Promises: libjpeg's warnings on the coded pixels raise; its warnings on metadata, and harmless padding, do not. Pixels are those that Pillow
decodes at the same scale. Damage after which the coded data happen to fit the image's size again causes no warning and is not found.
"""

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import simplejpeg

Colours = Literal["RGB", "GRAY", "CMYK"]

_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_SEQUENTIAL_SCAN = b"\x00\x3f\x00"
"""First and last coefficient and bit positions of a scan that is not progressive."""
_ZEROS_BEFORE_END = re.compile(rb"(?<!\xff)\x00+\xff\xd9")
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
"""How libjpeg-turbo's warnings on the coded pixels begin (jerror.h)."""


class JpegDamaged(ValueError):
    """Part of the coded pixels is missing or wrong."""


def decode_reduced(data: bytes, colours: Colours, size_px: tuple[int, int]) -> np.ndarray | None:
    """Decode all coefficients of a JPEG; return height x width x channels of 8 bits, `size_px` or slightly more, by a factor of libjpeg's.

    None if the pixels have to be read by another library, because this one does not know the encoding or dislikes the metadata.

    Raises:
        JpegDamaged: with libjpeg's first warning.
        MemoryError: if the memory is too small.
    """
    first = _decode(data, colours, size_px)
    if not isinstance(first, str):
        return first
    again = _decode(b"".join(_without_trifles(data)), colours, size_px)
    if isinstance(again, str) and again.startswith(_DAMAGE):
        raise JpegDamaged(again)
    return None


def check_jpeg(data: bytes, mode: str) -> None:
    """Look for damage in a JPEG that Pillow opened in `mode`; as fast as reading all coefficients.

    Raises:
        JpegDamaged: with libjpeg's first warning.
        MemoryError: if the memory is too small.
    """
    decode_reduced(data, "CMYK" if mode == "CMYK" else "GRAY", (1, 1))


def _decode(data: bytes, colours: Colours, size_px: tuple[int, int]) -> np.ndarray | str:
    """Return the pixels, or the text of libjpeg's first warning or error."""
    try:
        return simplejpeg.decode_jpeg(data, colours, min_width=size_px[0], min_height=size_px[1], strict=True)
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(str(error)) from error
        return str(error)


def _without_trifles(data: bytes) -> Iterator[bytes]:
    """Yield a JPEG without what libjpeg warns about although the pixels are complete; the first warning hides all others.

    These are metadata, padding between segments and before the end, and a sequential scan with the parameters of a progressive one.
    """
    at, sequential = len(_BEGIN), False
    yield _BEGIN
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0x00, 0xFF):
            at += 1
            continue
        sequential |= marker in _SEQUENTIAL
        if marker == _SCAN:
            yield data[at : end - 3] + (_SEQUENTIAL_SCAN if sequential else data[end - 3 : end])
            yield _ZEROS_BEFORE_END.sub(_END, data[end:])
            return
        if marker not in _METADATA:
            yield data[at:end]
        at = end
