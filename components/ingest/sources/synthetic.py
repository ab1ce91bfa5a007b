"""Procedural faces: a dataset for demos and tests without a download and without photographs of people.

Promises: face i of a given size is a function of (seed, i). Faces vary in pose, skin, hair, eyes, brows, nose, mouth, beard, glasses,
clothes and background. `write_archive` lays them out like the Kaggle archive of CelebA-HQ.
"""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from components.system.own_folder import partial_name

Colour = tuple[int, int, int]
_CANVAS_PX = 256
_JPEG_QUALITY = 95
_ZIP_DATE = (2000, 1, 1, 0, 0, 0)

_SKINS: tuple[Colour, ...] = ((255, 224, 196), (241, 194, 160), (224, 172, 132), (198, 134, 96), (150, 97, 66), (101, 64, 44))
_HAIRS: tuple[Colour, ...] = (
    (28, 22, 20),
    (62, 40, 26),
    (106, 68, 36),
    (168, 112, 56),
    (222, 184, 112),
    (150, 54, 30),
    (150, 150, 152),
    (232, 232, 228),
)
_IRISES: tuple[Colour, ...] = ((74, 46, 24), (40, 28, 20), (64, 104, 150), (84, 128, 92), (110, 120, 124))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(min(255, max(0, c * factor))) for c in colour)  # type: ignore[return-value]


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(int(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class _Face:
    """One face being drawn: the random choices that its parts must agree on, and the canvas."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.skin = _mix(_SKINS[rng.integers(len(_SKINS))], _SKINS[rng.integers(len(_SKINS))], rng.uniform(0, 0.4))
        self.hair = _shade(_HAIRS[rng.integers(len(_HAIRS))], rng.uniform(0.85, 1.15))
        self.style = str(rng.choice(["short", "long", "fringe", "curly", "bun", "bald"], p=[0.26, 0.26, 0.18, 0.14, 0.08, 0.08]))
        self.cx = 128 + rng.uniform(-7, 7)
        self.cy = 130 + rng.uniform(-6, 6)
        self.rx = rng.uniform(56, 66)
        self.ry = rng.uniform(74, 84)
        self.turn = rng.uniform(-9, 9)
        self.image = self._background()
        self.draw = ImageDraw.Draw(self.image)

    def _background(self) -> Image.Image:
        top, bottom = (self.rng.integers(30, 245, 3).astype(np.float32) for _ in range(2))
        angle = self.rng.uniform(0, 2 * math.pi)
        axis = np.linspace(-1, 1, _CANVAS_PX, dtype=np.float32)
        ramp = np.clip(0.5 + 0.5 * (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)), 0, 1)[..., None]
        return Image.fromarray((top + (bottom - top) * ramp).astype(np.uint8), "RGB")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.draw.ellipse((self.cx + x - rx, self.cy + y - ry, self.cx + x + rx, self.cy + y + ry), fill=fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour, width: float) -> None:
        box = (self.cx + x - rx, self.cy + y - ry, self.cx + x + rx, self.cy + y + ry)
        self.draw.arc(box, start, end, fill=fill, width=max(1, round(width)))


def _clothes(face: _Face) -> None:
    rng = face.rng
    colour: Colour = tuple(int(c) for c in rng.integers(20, 235, 3))  # type: ignore[assignment]
    face.draw.rounded_rectangle((face.cx - 30, face.cy + 40, face.cx + 30, face.cy + 130), 20, fill=_shade(face.skin, 0.82))
    face.ellipse(0, 172, rng.uniform(98, 118), 76, colour)
    face.ellipse(0, 94, 32, rng.uniform(14, 30), _shade(face.skin, 0.88))


def _hair_behind(face: _Face) -> None:
    dark = _shade(face.hair, 0.8)
    if face.style in ("long", "fringe"):
        length = face.rng.uniform(60, 120)
        face.ellipse(0, -16, face.rx + 20, face.ry + 14, dark)
        box = (face.cx - face.rx - 19, face.cy - 14, face.cx + face.rx + 19, face.cy + length)
        face.draw.rounded_rectangle(box, 24, fill=dark)
    elif face.style == "curly":
        for angle in np.linspace(math.pi * 0.9, math.pi * 2.1, 15):
            face.ellipse(math.cos(angle) * (face.rx + 10), -12 + math.sin(angle) * (face.ry + 2), 24, 24, dark)
    elif face.style == "bun":
        face.ellipse(0, -face.ry - 18, 26, 24, dark)
        face.ellipse(0, -12, face.rx + 9, face.ry + 6, dark)


def _head(face: _Face) -> None:
    for side in (-1, 1):
        face.ellipse(side * (face.rx - 1), 4, 11, 17, _shade(face.skin, 0.9))
    face.ellipse(0, 0, face.rx, face.ry, face.skin)
    face.ellipse(face.turn * 0.6, 26, face.rx * 0.8, face.ry * 0.62, _shade(face.skin, 1.03))
    blush = _mix(face.skin, (226, 96, 96), face.rng.uniform(0.05, 0.25))
    for side in (-1, 1):
        face.ellipse(face.turn + side * 34, 28, 13, 9, blush)


def _beard(face: _Face) -> None:
    if face.style in ("long", "fringe", "bun") or face.rng.random() > 0.4:
        return
    colour = _mix(face.hair, face.skin, face.rng.uniform(0, 0.35))
    face.draw.chord((face.cx - face.rx, face.cy - face.ry, face.cx + face.rx, face.cy + face.ry), 25, 155, fill=colour)
    face.ellipse(face.turn, 34, face.rx * 0.62, 26, face.skin)


def _eyes(face: _Face) -> None:
    rng = face.rng
    spread, height, opening = rng.uniform(24, 29), rng.uniform(-14, -6), rng.uniform(6.5, 10.5)
    iris = _IRISES[rng.integers(len(_IRISES))]
    look, lift, slope = rng.uniform(-4, 4), rng.uniform(15, 21), rng.uniform(-3.5, 3.5)
    for side in (-1, 1):
        x = face.turn + side * spread
        face.ellipse(x, height, 13, opening, (248, 246, 242))
        face.ellipse(x + look, height, min(7.5, opening), min(7.5, opening), iris)
        face.ellipse(x + look, height, 3.6, 3.6, (12, 10, 10))
        face.ellipse(x + look + 2, height - 2.5, 1.6, 1.6, (255, 255, 255))
        face.arc(x, height, 13, opening, 180, 360, (40, 26, 22), 2.5)
        ends = [(face.cx + x - 14, face.cy + height - lift + side * slope), (face.cx + x + 14, face.cy + height - lift - side * slope)]
        face.draw.line(ends, fill=_shade(face.hair, 0.75), width=int(rng.integers(4, 8)))
    if rng.random() < 0.3:
        _glasses(face, spread, height)


def _glasses(face: _Face, spread: float, height: float) -> None:
    colour = ((25, 25, 28), (120, 70, 40), (150, 30, 40), (60, 70, 120))[face.rng.integers(4)]
    round_lens = face.rng.random() < 0.5
    for side in (-1, 1):
        x, y = face.cx + face.turn + side * spread, face.cy + height
        if round_lens:
            face.draw.ellipse((x - 19, y - 18, x + 19, y + 18), outline=colour, width=4)
        else:
            face.draw.rounded_rectangle((x - 20, y - 14, x + 20, y + 15), 6, outline=colour, width=4)
        face.draw.line([(x + side * 19, y), (face.cx + side * face.rx, y - 3)], fill=colour, width=4)
    middle = face.cx + face.turn
    face.draw.line([(middle - spread + 19, face.cy + height), (middle + spread - 19, face.cy + height)], fill=colour, width=4)


def _nose_and_mouth(face: _Face) -> None:
    rng = face.rng
    width, turn = rng.uniform(7, 13), face.turn * 1.25
    face.ellipse(turn, 19, width, 7, _shade(face.skin, 0.86))
    face.ellipse(turn, 16, width * 0.8, 6, _shade(face.skin, 1.04))
    y, half = rng.uniform(40, 47), rng.uniform(16, 28)
    lips = _mix(face.skin, ((188, 44, 58), (170, 90, 84), (140, 50, 60))[rng.integers(3)], rng.uniform(0.5, 0.95))
    kind = rng.choice(["smile", "open", "flat", "grin"], p=[0.4, 0.2, 0.2, 0.2])
    if kind == "smile":
        face.arc(turn, y - 9, half, 15, 15, 165, lips, 6)
    elif kind == "flat":
        face.ellipse(turn, y, half * 0.9, 5, lips)
    else:
        box = (face.cx + turn - half, face.cy + y - 16, face.cx + turn + half, face.cy + y + (16 if kind == "open" else 12))
        face.draw.chord(box, 0, 180, fill=(96, 24, 30) if kind == "open" else (250, 248, 244), outline=lips, width=4)


def _hair_front(face: _Face) -> None:
    if face.style == "bald":
        return
    rng, rx, ry = face.rng, face.rx, face.ry
    box = (face.cx - rx - 6, face.cy - ry - 14, face.cx + rx + 6, face.cy + ry * 0.9)
    line = rng.uniform(20, 36)
    face.draw.chord(box, 180 + line, 360 - line, fill=face.hair)
    parting = rng.uniform(-0.6, 0.6) * rx
    if face.style == "fringe":
        face.draw.chord((face.cx - rx, face.cy - ry - 8, face.cx + rx, face.cy - ry + 92), 180, 360, fill=face.hair)
    elif face.style == "curly":
        for x in np.linspace(-rx, rx, 8):
            face.ellipse(float(x), -ry + 10 + abs(float(x)) * 0.35, 17, 17, face.hair)
    else:
        reach = rng.uniform(36, 54)
        for side in (-1, 1):
            edge = face.cx + side * (rx + 5)
            shape = [
                (face.cx + parting, face.cy - ry - 10),
                (edge, face.cy - ry + reach * 0.4),
                (edge, face.cy - ry + reach * 1.5),
                (face.cx + parting, face.cy - ry + 22),
            ]
            face.draw.polygon(shape, fill=_shade(face.hair, 1.0 + 0.08 * side))


_PARTS: tuple[Callable[[_Face], None], ...] = (_hair_behind, _clothes, _head, _beard, _eyes, _nose_and_mouth, _hair_front)


def draw_face(seed: int, index: int, image_px: int) -> Image.Image:
    """Draw face number `index` of the family `seed`, as an RGB image with sides of `image_px` pixels."""
    rng = np.random.default_rng([seed, index])
    face = _Face(rng)
    for part in _PARTS:
        part(face)
    tilted = face.image.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR, center=(128, 160))
    inset = 14
    framed = tilted.crop((inset, inset, _CANVAS_PX - inset, _CANVAS_PX - inset)).filter(ImageFilter.GaussianBlur(0.6))
    return framed.resize((image_px, image_px), Image.Resampling.LANCZOS)


def encode_face(seed: int, index: int, image_px: int) -> bytes:
    """Draw a face and return it as JPEG bytes."""
    buffer = io.BytesIO()
    draw_face(seed, index, image_px).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def write_archive(target: Path, *, count: int, seed: int, image_px: int, on_image: Callable[[int], None] = lambda done: None) -> None:
    """Write `count` faces as a zip laid out like the Kaggle archive of CelebA-HQ: `celeba_hq_256/00000.jpg` and on.

    The file appears under its name only when it is complete; equal arguments give equal bytes.
    """
    partial = partial_name(target)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for index in range(count):
            entry = zipfile.ZipInfo(f"celeba_hq_256/{index:05d}.jpg", date_time=_ZIP_DATE)
            archive.writestr(entry, encode_face(seed, index, image_px))
            on_image(index + 1)
    partial.replace(target)
