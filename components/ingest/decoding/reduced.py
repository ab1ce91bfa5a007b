"""An image reduced by area to 32 pixels a side or a little more, for its colour statistics and its perceptual hash.

Promises: all of the image's data are decoded, so that damage is found; of a JPEG libjpeg computes no more pixels than are needed.
"""

from typing import NamedTuple

from PIL import Image

from components.ingest.colour_statistics import reduction_factor
from components.ingest.decoding.jpeg_damage import decode_reduced

_JPEG_SCALE = 8
_BRIGHTNESS_STEP = 2  # grey levels: smaller differences come from recompression of an even surface


class Pixels(NamedTuple):
    """RGB pixels, 8 bits per channel, in rows; for most images they are never a Pillow image, which would take as long as their hash."""

    data: bytes
    size: tuple[int, int]


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels of an RGB image."""
    return Pixels(image.tobytes(), image.size)


def decode_small(image: Image.Image, data: bytes) -> Pixels:
    """Decode all of an image's data and return it reduced.

    A JPEG decoder reads and checks every coefficient, however few pixels it produces.
    """
    if image.format != "JPEG":
        return pixels_of(image.reduce(reduction_factor(image.width)))
    if (reduced := reduced_jpeg(data, image.size)) is None:
        scale = reduction_factor(image.width)
        done = min(scale, _JPEG_SCALE)
        image.draft("RGB", (image.width // done, image.height // done))
        image.load()
        return pixels_of(image.reduce(scale // done))
    return reduced


def reduced_jpeg(data: bytes, size: tuple[int, int]) -> Pixels | None:
    """Decode all of a JPEG of this size and return it reduced; None if Pillow has to.

    Raises:
        JpegDamaged, MemoryError: as `decode_reduced`.
    """
    scale = reduction_factor(size[0])
    done = min(scale, _JPEG_SCALE)
    decoded = decode_reduced(data, "RGB", (size[0] // done, size[1] // done))
    if decoded is None:
        return None
    height, width, _ = decoded.shape
    reduced = Pixels(decoded.tobytes(), (width, height))
    return pixels_of(_image(reduced).reduce(scale // done)) if scale > done else reduced


def _image(pixels: Pixels) -> Image.Image:
    return Image.frombytes("RGB", pixels.size, pixels.data)


def perceptual_hash(small: Pixels) -> int:
    """Return 64 bits, each set where a part of the image is clearly brighter than its right neighbour (difference hash)."""
    grey = _image(small).convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for at in range(len(grey)):
        if at % 9 < 8:
            bits = bits << 1 | (grey[at] > grey[at + 1] + _BRIGHTNESS_STEP)
    return bits
