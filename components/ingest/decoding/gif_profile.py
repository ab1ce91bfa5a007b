"""The ICC profile of a GIF: an application extension that ImageMagick and Photoshop write, and Pillow does not read.

Promises: pure; blocks after the first pixels do not count, and a file that is cut or odd gives None. The layout is that of GIF 89a, 26,
with the identifier of ICC.1:2022, B.5.
"""

_SCREEN_BYTES, _FLAGS_AT, _HAS_COLOURS = 13, 10, 0x80
_EXTENSION, _APPLICATION = 0x21, 0xFF
_ICC = b"ICCRGBG1012"


def gif_profile(data: bytes) -> bytes | None:
    """Return the profile of the GIF `data`, if it has one."""
    flags = data[_FLAGS_AT] if len(data) > _FLAGS_AT else 0
    at = _SCREEN_BYTES + (3 << (flags & 7) + 1 if flags & _HAS_COLOURS else 0)
    while at + 2 < len(data) and data[at] == _EXTENSION:
        is_profile = data[at + 1] == _APPLICATION and data[at + 3 : at + 3 + data[at + 2]] == _ICC
        blocks, at = _blocks(data, at + 2)
        if is_profile:
            return b"".join(blocks[1:]) or None
    return None


def _blocks(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Return the blocks that begin at `at`, up to the empty one that ends them, and where they end."""
    blocks = []
    while at < len(data) and (size := data[at]):
        blocks.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return blocks, at + 1
