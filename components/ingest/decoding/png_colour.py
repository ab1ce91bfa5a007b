"""What the chunks of a PNG say of its colours, in the order in which they count: cICP, iCCP, sRGB, then gAMA with cHRM (PNG 3, 4.3).

Promises: pure; chunks after the first pixels, with a wrong checksum or of a wrong size are passed over. Read here because Pillow does not
know cICP, and refuses images whose profile or texts unpack to more than a mebibyte.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from components.ingest.decoding.matrix_profile import BT709, Primaries

PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PROFILE_BYTES = 16 * 2**20
_SRGB_GAMMA = 0.45455
_NEAR_GAMMA = 0.05
"""Relative difference up to which libpng takes two gammas for the same (PNG_GAMMA_THRESHOLD)."""
_NEAR_POINT = 0.005


class PngColour(NamedTuple):
    """The chunks that count: at most one of the fields, and all None for sRGB."""

    cicp: tuple[int, int, int, int] | None = None
    """Primaries, transfer function, matrix, full range: numbers of ITU-T H.273."""
    profile: bytes | None = None
    gamma: tuple[Primaries, float | None] | None = None
    """Primaries and the exponent of the transfer function; None for sRGB's function."""
    note: str = ""
    """What could not be used."""


def png_colour(data: bytes) -> PngColour:
    """Return what the PNG `data` says of its colours."""
    chunks = dict(_chunks(data))
    if len(cicp := chunks.get(b"cICP", b"")) == 4:
        return PngColour(cicp=(cicp[0], cicp[1], cicp[2], cicp[3]))
    note = ""
    if b"iCCP" in chunks:
        profile = _profile(chunks[b"iCCP"])
        if profile is not None:
            return PngColour(profile=profile)
        note = "its colour profile cannot be read: not applied"
    if b"sRGB" in chunks:
        return PngColour(note=note)
    return _gamma(chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b""), note)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks before the first pixels; a later one of a kind does not count, so it comes first."""
    at, before = len(PNG), []
    while at + 12 <= len(data) and (kind := data[at + 4 : at + 8]) not in (b"IDAT", b"IEND"):
        size = int.from_bytes(data[at : at + 4], "big")
        if kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            content, checksum = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
            if zlib.crc32(kind + content).to_bytes(4, "big") == checksum:
                before.append((kind, content))
        at += 12 + size
    return reversed(before)


def _profile(chunk: bytes) -> bytes | None:
    name_end = chunk.find(b"\0")
    if name_end < 0 or chunk[name_end + 1 : name_end + 2] != b"\0":
        return None
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(chunk[name_end + 2 :], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if stream.eof or not stream.unconsumed_tail else None


def _gamma(gama: bytes, chrm: bytes, note: str) -> PngColour:
    primaries, exponent = BT709, None
    if len(gama) == 4:
        gamma = int.from_bytes(gama, "big") / 100_000
        if not 0.05 <= gamma <= 20:
            note = f"its gamma of {gamma:g} is none: not applied"
        elif abs(gamma / _SRGB_GAMMA - 1) > _NEAR_GAMMA:
            exponent = 1 / gamma
    if len(chrm) == 32:
        white, red, green, blue = ((x / 100_000, y / 100_000) for x, y in struct.iter_unpack(">II", chrm))
        described = Primaries(red, green, blue, white)
        differences = (abs(a - b) for point, known in zip(described, BT709, strict=True) for a, b in zip(point, known, strict=True))
        primaries = described if max(differences) > _NEAR_POINT else BT709
    if exponent is None and primaries is BT709:
        return PngColour(note=note)
    return PngColour(gamma=(primaries, exponent), note=note)
