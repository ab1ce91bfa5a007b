"""Make an ICC profile of a colour space that is described by its primaries and its transfer function.

Promises: pure. The matrix is that of the ICC specification (ICC.1:2022): from linear RGB to XYZ of the white D50, adapted after Bradford.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]
"""CIE 1931 chromaticity (x, y)."""
Matrix = Sequence[Sequence[float]]
Vector = Sequence[float]

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_HEADER_BYTES, _TAG_BYTES = 128, 12
_D65 = (0.3127, 0.3290)


class Primaries(NamedTuple):
    """Chromaticities of the three primaries and of white."""

    red: Point
    green: Point
    blue: Point
    white: Point = _D65


BT709 = Primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB = Primaries((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_RGB_GAMMA = 563 / 256


def matrix_profile(primaries: Primaries, gamma: float | None = None) -> bytes:
    """Return an ICC profile, version 4: of the transfer function x**gamma, or of sRGB's if `gamma` is None.

    Raises:
        ValueError: if the primaries lie on a line, or a chromaticity has no luminance.
    """
    columns = _to_d50(primaries)
    curve = _parametric(0, (gamma,)) if gamma is not None else _parametric(3, _SRGB_CURVE)
    tags = {
        b"wtpt": _xyz(_D50),
        **{name: _xyz([row[n] for row in columns]) for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at = _HEADER_BYTES + 4 + _TAG_BYTES * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    signature = struct.pack(">4s4s", b"acsp", b"\0\0\0\0")
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    header = struct.pack(">I4xI4s4s4s", at + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ") + date + signature
    header = header.ljust(64, b"\0") + struct.pack(">I", 1) + _xyz(_D50)[8:]
    return header.ljust(_HEADER_BYTES, b"\0") + table + body


def _xyz(values: Vector) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_encode_fixed_point, values))


def _parametric(kind: int, values: Vector) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_encode_fixed_point, values))


def _encode_fixed_point(value: float) -> bytes:
    """Encode a number with 16 bits after the point."""
    try:
        return struct.pack(">i", round(value * 65536))
    except struct.error as error:
        raise ValueError(f"{value} is outside -32768 to 32768") from error


def _to_d50(primaries: Primaries) -> Matrix:
    """Return the matrix from linear RGB to XYZ under D50."""
    white = _unit_xyz(primaries.white)
    unscaled = _transpose([_unit_xyz(point) for point in primaries[:3]])
    scales = _times(_inverse(unscaled), white)
    to_xyz = [[value * scale for value, scale in zip(row, scales, strict=True)] for row in unscaled]
    gains = [to / of for to, of in zip(_times(_BRADFORD, _D50), _times(_BRADFORD, white), strict=True)]
    scaled = [[gain * value for value in row] for gain, row in zip(gains, _BRADFORD, strict=True)]
    return _product(_inverse(_BRADFORD), _product(scaled, to_xyz))


def _unit_xyz(point: Point) -> Vector:
    x, y = point
    if y <= 0:
        raise ValueError(f"the chromaticity {x}, {y} has no luminance")
    return x / y, 1.0, (1 - x - y) / y


def _transpose(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))


def _times(matrix: Matrix, vector: Vector) -> Vector:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _product(left: Matrix, right: Matrix) -> Matrix:
    return _transpose([_times(left, column) for column in _transpose(right)])


def _inverse(matrix: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    cofactors = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * cofactors[0][0] + b * cofactors[1][0] + c * cofactors[2][0]
    if abs(determinant) < 1e-9:
        raise ValueError("the primaries lie on a line")
    return [[value / determinant for value in row] for row in cofactors]
