"""Pictures in other colour spaces than sRGB, and the profiles that say so, written here by formula and not by a colour library."""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from celebdit_testing.corpus import face

D65, D50 = (0.3127, 0.3290), (0.34567, 0.35850)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
Curve = Callable[[np.ndarray], np.ndarray]


def srgb_curve(encoded: np.ndarray) -> np.ndarray:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def gamma(exponent: float) -> Curve:
    return lambda encoded: encoded**exponent


class Space(NamedTuple):
    """Primaries, white and the curve from encoded to linear values."""

    primaries: tuple[tuple[float, float], ...]
    white: tuple[float, float]
    curve: Curve


SRGB = Space(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, srgb_curve)
SPACES = {
    "Display P3": Space(((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65, srgb_curve),
    "Adobe RGB": Space(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, gamma(563 / 256)),
    "ProPhoto": Space(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, gamma(1.8)),
    "BT.2020": Space(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65, srgb_curve),
    "old Mac": Space(SRGB.primaries, D65, gamma(1.8)),
    "linear": Space(SRGB.primaries, D65, gamma(1.0)),
}


def picture(px: int = 64) -> np.ndarray:
    """A face in sRGB without the darkest and the brightest tones, so that eight bits suffice in every space."""
    return (np.asarray(face(3, px)).astype(float) * 0.7 + 40).round().astype(np.uint8)


def in_space(srgb: np.ndarray, space: Space) -> np.ndarray:
    """The same colours, encoded in another space."""
    linear = srgb_curve(srgb / 255) @ _to_d50(SRGB).T @ np.linalg.inv(_to_d50(space)).T
    levels = space.curve(np.linspace(0, 1, 65536))
    return (np.interp(linear.clip(0, 1), levels, np.linspace(0, 255, 65536))).round().astype(np.uint8)


def rgb_profile(space: Space) -> bytes:
    """An ICC profile, version 2, with its curve as a table."""
    columns = _to_d50(space).T
    curve = (space.curve(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2").tobytes()
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + curve
    tags = {name: b"XYZ \0\0\0\0" + _fixed(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(curve: Curve) -> bytes:
    table = (curve(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2").tobytes()
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 1024) + table})


def ink_profile(colour_of: Callable[[np.ndarray], np.ndarray], steps: int = 9) -> bytes:
    """A profile of a press, whose inks (0 to 1, last axis CMYK) have these colours in sRGB (0 to 1): a table of Lab colours."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, steps)] * 4, indexing="ij"), axis=-1)
    lab = _lab(colour_of(grid).reshape(-1, 3))
    scaled = np.stack([lab[:, 0] / 100 * 65280, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=1)
    straight = struct.pack(">HH", 0, 65535)
    table = struct.pack(">BBBx", 4, 3, steps) + _fixed(np.eye(3).ravel()) + struct.pack(">HH", 2, 2) + straight * 4
    table += scaled.round().clip(0, 65535).astype(">u2").tobytes() + straight * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": b"mft2\0\0\0\0" + table})


def with_cicp_tag(profile: bytes, transfer: int) -> bytes:
    """The profile with a tag that names its transfer function, as those of HDR displays have."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = [struct.unpack_from(">4sII", profile, 132 + 12 * n) for n in range(count)]
    contents = {name: profile[at : at + size] for name, at, size in tags} | {b"cicp": b"cicp\0\0\0\0" + bytes((9, transfer, 0, 1))}
    return _profile(profile[12:16], profile[16:20], profile[20:24], contents)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed([0.9642, 1, 0.8249]), **tags}
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI", at + len(body), 0x02400000) + kind + space + connection + struct.pack(">6H", 2001, 1, 1, 0, 0, 0) + b"acsp"
    head = head.ljust(68, b"\0") + _fixed([0.9642, 1, 0.8249])
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(values: object) -> bytes:
    return (np.asarray(values) * 65536).round().astype(">i4").tobytes()


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_d50(space: Space) -> np.ndarray:
    columns = np.stack([_xyz(*point) for point in space.primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, _xyz(*space.white))
    gains = (_BRADFORD @ _xyz(*D50)) / (_BRADFORD @ _xyz(*space.white))
    return np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix


def _lab(srgb: np.ndarray) -> np.ndarray:
    relative = srgb_curve(srgb) @ _to_d50(SRGB).T / _xyz(*D50)
    f = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
