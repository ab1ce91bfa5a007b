"""Turn an image upright, make it RGB, crop it to its centre and resize it once with antialiasing."""

from PIL import Image

from components.ingest.decoding.alpha import centre_square, require_visible, without_unused_alpha
from components.ingest.decoding.colour_space import ColourSpace
from components.ingest.decoding.metadata import BROKEN
from components.ingest.verdicts import Rule

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


def normalise(image: Image.Image, image_px: int, *, orientation: int, space: ColourSpace) -> tuple[Image.Image, tuple[Rule, ...]]:
    """Return `image` upright, in sRGB and square, and the rules that were applied, "converted" at least.

    Raises:
        Invisible: if every pixel of the square is transparent.
    """
    rules: list[Rule] = []
    image = without_unused_alpha(image)
    if orientation in _UPRIGHT:
        # `ImageOps.exif_transpose` also writes the other tags again, and fails on those that it cannot write.
        image = image.transpose(_UPRIGHT[orientation])
        rules.append("upright")
    if image.mode != "RGB" or "transparency" in image.info:
        rules.append("converted")
    if space.changes(image):
        rules.append("srgb")
    side = min(image.size)
    if image.width != image.height:
        image = image.crop(centre_square(image.size))
        rules.append("cropped")
    image = _to_rgb(image, space)
    if side != image_px:
        image = image.resize((image_px, image_px), Image.Resampling.LANCZOS)
        rules.append("resized")
    return image, tuple(rules) or ("converted",)


def _to_rgb(image: Image.Image, space: ColourSpace) -> Image.Image:
    """Convert to sRGB; transparent pixels become white."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return space.to_srgb(image)
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A")
    require_visible(alpha)
    opaque = layered.convert("L" if image.mode in ("L", "LA", "La", "1") else "RGB")
    flat = Image.new("RGB", layered.size, (255, 255, 255))
    flat.paste(space.to_srgb(opaque), mask=alpha)
    return flat


def orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8; None if the metadata cannot be read, which says nothing about how to turn the pixels."""
    if image.format == "PNG":
        image.load()  # `getexif` reads a PNG to its end, and damaged pixels are not damaged metadata
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # decoded upright; only a JPEG that was packed as JPEG XL comes as it was
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
        return next((known for known in _UPRIGHT if known == value), 1)
    except BROKEN:
        return None
