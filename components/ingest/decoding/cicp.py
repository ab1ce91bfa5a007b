"""Coding-independent code points (ITU-T H.273): what the numbers in a PNG's cICP chunk and in an ICC profile's cicp tag mean.

Promises: pure. PQ and HLG raise: their pixels have more range than sRGB, and how to reduce it is a decision of a person, not of a table.
"""

import struct

from components.ingest.decoding.matrix_profile import BT709, Primaries

_LINEAR = 1.0
_ILLUMINANT_C = (0.310, 0.316)
_BT601 = Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_PRIMARIES = {
    1: BT709,
    4: Primaries((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _ILLUMINANT_C),
    5: Primaries((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _BT601,
    7: _BT601,
    8: Primaries((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _ILLUMINANT_C),
    9: Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Primaries((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
_GAMMAS: dict[int, float | None] = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: _LINEAR, 13: None, 14: None, 15: None}
"""Transfer function -> exponent, None for sRGB's. The curves of television (1, 6, 14, 15) are meant for displays like sRGB's."""
_HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}


class HighDynamicRange(Exception):
    """An image is encoded by PQ or HLG. Not a ValueError, which means damaged metadata."""


def primaries_and_gamma(primaries: int, transfer: int, matrix: int) -> tuple[Primaries, float | None]:
    """Return primaries and the exponent of the transfer function, None for sRGB's.

    Raises:
        HighDynamicRange: if they are of that kind.
        ValueError: if the numbers say nothing that can be converted.
    """
    _reject(transfer)
    if primaries not in _PRIMARIES or transfer not in _GAMMAS or matrix != 0:
        raise ValueError(f"cICP {primaries}/{transfer}/{matrix} is not known")
    return _PRIMARIES[primaries], _GAMMAS[transfer]


def reject_high_dynamic_range(profile: bytes) -> None:
    """Raise `HighDynamicRange` if an ICC profile has a cicp tag (ICC.1:2022, 9.2.17) of PQ or HLG."""
    (count,) = struct.unpack_from(">I", profile, 128) if len(profile) >= 132 else (0,)
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        name, begin, size = struct.unpack_from(">4sII", profile, at)
        if name == b"cicp" and size >= 12 and begin + 12 <= len(profile):
            _reject(profile[begin + 9])


def _reject(transfer: int) -> None:
    if (name := _HIGH_DYNAMIC_RANGE.get(transfer)) is not None:
        raise HighDynamicRange(f"encoded by {name}, with more range than a screen of sRGB: convert it to sRGB")
