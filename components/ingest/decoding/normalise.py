"""Turn an image upright, make it RGB, crop it to its centre and resize it once with antialiasing."""

import struct
import zlib

from PIL import Image, UnidentifiedImageError

from components.ingest.decoding.alpha import centre_square, require_visible, without_unused_alpha
from components.ingest.verdicts import Rule

BROKEN = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's parsers raise on hostile bytes; MemoryError has a verdict of its own."""
_EXIF_ORIENTATION = 274
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""


def normalise(image: Image.Image, image_px: int) -> tuple[Image.Image, tuple[Rule, ...]]:
    """Return `image` upright, RGB and square, and the rules that were applied, "converted" at least.

    Raises:
        Invisible: if every pixel of the square is transparent.
    """
    rules: list[Rule] = []
    image = without_unused_alpha(image)
    if (turn := _UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(turn)  # `ImageOps.exif_transpose` also writes the other tags again, and fails on those that it cannot write
        rules.append("upright")
    if image.mode != "RGB" or "transparency" in image.info:
        image = _to_rgb(image)
        rules.append("converted")
    side = min(image.size)
    if image.width != image.height:
        image = image.crop(centre_square(image.size))
        rules.append("cropped")
    if side != image_px:
        image = image.resize((image_px, image_px), Image.Resampling.LANCZOS)
        rules.append("resized")
    return image, tuple(rules) or ("converted",)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent pixels become white."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A")
    require_visible(alpha)
    flat = Image.new("RGB", layered.size, (255, 255, 255))
    flat.paste(layered, mask=alpha)
    return flat


def is_turned(image: Image.Image) -> bool:
    """Return whether the EXIF orientation of an image is another than upright."""
    return _orientation(image) in _UPRIGHT


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; metadata that cannot be read says nothing about how to turn the pixels."""
    if image.format == "PNG":
        image.load()  # `getexif` reads a PNG to its end, and damaged pixels are not damaged metadata
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # decoded upright; only a JPEG that was packed as JPEG XL comes as it was
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return next((known for known in _UPRIGHT if known == orientation), 1)
    except BROKEN:
        return 1
