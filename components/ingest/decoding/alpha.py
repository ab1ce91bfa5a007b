"""Alpha channels that hide everything, or that no program uses."""

from PIL import Image


class Invisible(Exception):
    """Every pixel that would be kept of an image is transparent."""


def without_unused_alpha(image: Image.Image) -> Image.Image:
    """Return a BMP whose alpha is zero everywhere without it: the fourth byte of most 32-bit BMPs is padding, and viewers ignore it."""
    if image.format == "BMP" and image.mode == "RGBA" and not _highest(image.getchannel("A")):
        return image.convert("RGB")
    return image


def require_visible(alpha: Image.Image) -> None:
    """Raise Invisible unless a pixel of the centre square can be seen."""
    if not _highest(alpha.crop(centre_square(alpha.size))):
        raise Invisible


def centre_square(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box of the largest square in the centre of an image of this size."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _highest(alpha: Image.Image) -> int:
    return alpha.getextrema()[1]  # type: ignore[return-value]
