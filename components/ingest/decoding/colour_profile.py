"""Convert pixels to sRGB by an ICC profile, with littleCMS: relative colorimetric, with black-point compensation.

Promises: a profile that means sRGB is recognised by what it does to colours, whatever its name and size. Opens no file. A profile that
cannot be used raises `ProfileUnusable`; too little memory raises MemoryError, so that the image is judged again with more.
"""

import io
from functools import lru_cache

from PIL import Image, ImageCms

from components.ingest.decoding.cicp import reject_high_dynamic_range

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_PIXEL_CLASSES = ("mntr", "scnr", "prtr", "spac")
_CACHED_BYTES = 2**16
"""Size up to which a profile's conversion is kept for the next images: all of one camera have the same profile."""
_TABLE_BYTES = 8 * 2**20
"""More than the tables of a conversion take, besides a few times the profile's size."""
_STEPS = range(0, 256, 17)
_SAME_MEAN, _SAME_MAX = 0.5, 4
"""Mean and largest difference in levels up to which a profile means sRGB: its variants differ by rounding and in their darkest tones."""


class ProfileUnusable(ValueError):
    """A colour profile is damaged, or is not one for pixels."""


class Conversion:
    """Conversion to sRGB of pixels in the profile's own `mode`: RGB, L or CMYK."""

    def __init__(self, transform: ImageCms.ImageCmsTransform) -> None:
        self._transform = transform
        self.mode = transform.input_mode

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return `image` in sRGB; one in RGB is changed in place."""
        try:
            converted = self._transform.apply_in_place(image) if self.mode == "RGB" else self._transform.apply(image)
        except ImageCms.PyCMSError as error:
            raise ProfileUnusable(str(error)) from error
        del converted.info["icc_profile"]
        return converted

    def means_srgb(self) -> bool:
        """Return whether the conversion changes nothing that can be seen."""
        if self.mode == "CMYK":
            return False
        probe = _probe(self.mode)
        before, after = probe.convert("RGB").tobytes(), self(probe).tobytes()
        differences = [abs(a - b) for a, b in zip(before, after, strict=True)]
        return max(differences) <= _SAME_MAX and sum(differences) <= _SAME_MEAN * len(differences)


def conversion(profile: bytes) -> Conversion | None:
    """Return the conversion from `profile` to sRGB; None if the profile means sRGB.

    Raises:
        ProfileUnusable: saying why.
        HighDynamicRange: if the profile is one of PQ or HLG.
    """
    return _kept(profile) if len(profile) <= _CACHED_BYTES else _build(profile)


def _build(profile: bytes) -> Conversion | None:
    reject_high_dynamic_range(profile)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space)
        if mode is None or source.profile.device_class not in _PIXEL_CLASSES:
            raise ProfileUnusable(f"is of the class {source.profile.device_class!r} for {source.profile.xcolor_space!r}")
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.HIGHRESPRECALC if mode == "CMYK" else ImageCms.Flags.NONE)
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        converts = Conversion(ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB", intent, flags=flags))
        return None if converts.means_srgb() else converts
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        bytearray(_TABLE_BYTES + 4 * len(profile))  # littleCMS does not say that memory was too small: MemoryError here does
        raise error if isinstance(error, ProfileUnusable) else ProfileUnusable(str(error)) from error


_kept = lru_cache(maxsize=8)(_build)


def _probe(mode: str) -> Image.Image:
    """Return an image of colours all over the space, with all greys."""
    greys = bytes(range(256))
    if mode == "L":
        return Image.frombytes("L", (256, 1), greys)
    colours = bytes(value for red in _STEPS for green in _STEPS for blue in _STEPS for value in (red, green, blue))
    colours += bytes(value for grey in greys for value in (grey, grey, grey))
    return Image.frombytes("RGB", (len(colours) // 3, 1), colours)
