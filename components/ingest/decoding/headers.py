"""Facts from the headers of formats whose libraries report them too late, or not at all.

Promises: pure; a header that is cut or odd gives None, and the library that decodes the image says what is wrong.
"""

_AVIF_DEPTH_FLAGS_AT = 6
_AVIF_DEEP, _AVIF_TWELVE = 0x40, 0x20
_HEADER_BYTES = 2**16
_JXL_CODESTREAM = b"\xff\x0a"
_JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_BOXES = {b"jxlc": 8, b"jxlp": 12}
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def avif_bits_per_channel(data: bytes) -> int:
    """Return the depth of an AVIF's channels, which Pillow cuts to 8 bits: AV1 in ISOBMFF 2.3.3, the flags of its configuration box."""
    at = data.find(b"av1C", 0, _HEADER_BYTES)
    flags = data[at + _AVIF_DEPTH_FLAGS_AT] if 0 <= at < len(data) - _AVIF_DEPTH_FLAGS_AT else 0
    if not flags & _AVIF_DEEP:
        return 8
    return 12 if flags & _AVIF_TWELVE else 10


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG XL, whose library decodes all of it before it reports them: ISO/IEC 18181-1, SizeHeader."""
    start = _jpeg_xl_codestream(data)
    if start is None:
        return None
    bits = _Bits(int.from_bytes(data[start + 2 : start + 18], "little"))
    small = bits.take(1)
    height = _side(bits, small=small)
    if ratio := bits.take(3):
        numerator, denominator = _JXL_RATIOS[ratio - 1]
        return height * numerator // denominator, height
    return _side(bits, small=small), height


class _Bits:
    """Bits of a number, from the lowest on."""

    def __init__(self, number: int) -> None:
        self._number = number

    def take(self, count: int) -> int:
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        return value


def _side(bits: _Bits, *, small: int) -> int:
    return (bits.take(5) + 1) * 8 if small else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


def _jpeg_xl_codestream(data: bytes) -> int | None:
    """Return where the codestream begins, bare or in the first box that holds a part of it."""
    if data.startswith(_JXL_CODESTREAM):
        return 0
    if not data.startswith(_JXL_CONTAINER):  # other files may hold anything, and are not searched
        return None
    for kind, ahead in _JXL_BOXES.items():
        at = data.find(kind)
        if at >= 0 and data.startswith(_JXL_CODESTREAM, at - 4 + ahead):
            return at - 4 + ahead
    return None
