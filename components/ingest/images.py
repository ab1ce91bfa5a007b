"""The verdict on one candidate: accepted as it is, accepted with a named rule, or rejected with a code.

Promises: a pure function of the candidate's bytes and the configuration. An RGB image of the target size keeps its bytes; anything else is
decoded once, turned upright, made RGB, centre-cropped, resized once with antialiasing and stored losslessly as PNG.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from components.ingest.config import DataConfig

Rule = Literal["as_is", "upright", "converted", "resized"]
Code = Literal[
    "too_many_bytes", "not_an_image", "too_many_pixels", "too_small", "animated", "sixteen_bit", "truncated", "duplicate", "unreadable"
]

_KEEPS_BYTES = {"JPEG": "jpg", "PNG": "png"}
_READABLE = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Accepted:
    """An image that enters the data set: the bytes to store and what is known of them."""

    data: bytes
    extension: Literal["jpg", "png"]
    sha256: str
    rules: tuple[Rule, ...]
    source_px: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def key(self) -> str:
        """The image's name in the data set, a function of its content."""
        return self.sha256[:20]


@dataclass(frozen=True)
class Rejected:
    """A candidate that does not enter, and why."""

    code: Code
    detail: str


def judge(data: bytes, config: DataConfig) -> Accepted | Rejected:
    """Decide on the candidate with the bytes `data`."""
    if len(data) > config.max_image_bytes:
        return Rejected("too_many_bytes", f"{len(data)} bytes, at most {config.max_image_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_READABLE)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        code: Code = "too_many_pixels" if isinstance(error, Image.DecompressionBombError) else "not_an_image"
        return Rejected(code, str(error)[:200])
    return _refusal(image, config) or _decode(image, data, config)


def _refusal(image: Image.Image, config: DataConfig) -> Rejected | None:
    """Reject by what the header says, before any pixel is decoded."""
    width, height = image.size
    if width * height > config.max_image_pixels:
        return Rejected("too_many_pixels", f"{width}x{height}, at most {config.max_image_pixels} pixels")
    if min(width, height) < config.image_px:
        return Rejected("too_small", f"{width}x{height}, at least {config.image_px} per side")
    if getattr(image, "n_frames", 1) > 1:
        return Rejected("animated", f"{image.n_frames} frames")  # type: ignore[attr-defined]
    if image.mode in _DEEP_MODES:
        return Rejected("sixteen_bit", f"mode {image.mode} has more than 8 bits per channel")
    return None


def _decode(image: Image.Image, data: bytes, config: DataConfig) -> Accepted | Rejected:
    source_px, kind = image.size, image.format or ""
    try:
        image.load()
        rgb, rules = _normalised(image, config.image_px)
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        return Rejected("truncated", str(error)[:200])
    if not rules and kind in _KEEPS_BYTES:
        stored, extension, rules = data, _KEEPS_BYTES[kind], ["as_is"]
    else:
        buffer = io.BytesIO()
        rgb.save(buffer, "PNG")
        stored, extension, rules = buffer.getvalue(), "png", rules or ["converted"]
    pixels = np.asarray(rgb, dtype=np.float32).reshape(-1, 3) / 255
    return Accepted(
        data=stored,
        extension=extension,  # type: ignore[arg-type]
        sha256=hashlib.sha256(stored).hexdigest(),
        rules=tuple(rules),
        source_px=source_px,
        mean=tuple(round(float(v), 6) for v in pixels.mean(0)),  # type: ignore[arg-type]
        std=tuple(round(float(v), 6) for v in pixels.std(0)),  # type: ignore[arg-type]
    )


def _normalised(image: Image.Image, image_px: int) -> tuple[Image.Image, list[Rule]]:
    """Return `image` upright, RGB and square, and the rules that this took."""
    rules: list[Rule] = []
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        rules.append("upright")
    if image.mode != "RGB":
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layered = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered)
        image = image.convert("RGB")
        rules.append("converted")
    if image.size != (image_px, image_px):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((image_px, image_px), Image.Resampling.LANCZOS)
        rules.append("resized")
    return image, rules
