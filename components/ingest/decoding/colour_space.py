"""The colour space that an image's metadata give its pixels, and how they become sRGB.

Promises: an image without such metadata is sRGB; metadata that cannot be used leave the pixels as they are, with a note. Read are ICC
profiles, cICP, gAMA and cHRM of a PNG, and the Adobe RGB of cameras (DCF: interoperability index R03 and no profile).
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from PIL import ExifTags, Image

from components.errors import shorten
from components.ingest.decoding import cicp
from components.ingest.decoding.colour_profile import Conversion, ProfileUnusable, conversion
from components.ingest.decoding.gif_profile import gif_profile
from components.ingest.decoding.matrix_profile import ADOBE_RGB, ADOBE_RGB_GAMMA, BT709, Primaries, matrix_profile
from components.ingest.decoding.metadata import BROKEN
from components.ingest.decoding.png_colour import png_colour

_SRGB_EXIF = 1
_ADOBE_RGB_INDEX = "R03"
_BMP_PROFILE_AT, _BMP_SPACE_AT, _BMP_HEADER_AT, _BMP_V5 = 126, 70, 14, 124
_BOXES, _BOXES_BYTES, _UNSPECIFIED = ("AVIF", "HEIF"), 2**16, 2
_LIMITED = bytes(min(255, max(0, round((level - 16) * 255 / 219))) for level in range(256))
"""Levels of limited range, 16 to 235, as full range."""


_SERVING = {"RGB": ("RGB",), "L": ("L", "RGB"), "CMYK": ("CMYK",)}
"""Channels of an image -> modes of the profiles that can be applied to it: greys are colours too."""


class ColourSpace(NamedTuple):
    """What is done to the pixels, and whether a copy of the file would be shown like that by other programs."""

    conversion: Conversion | None = None
    limited: bool = False
    """Whether black is 16 and white 235."""
    note: str = ""

    @property
    def is_srgb(self) -> bool:
        """Whether the pixels are used as they are, and every program takes them so."""
        return self == ColourSpace()

    def changes(self, image: Image.Image) -> bool:
        """Return whether the pixels of `image` change; a profile for inks or for greys says nothing about colours."""
        return self.limited or (self.conversion is not None and self.conversion.mode in _SERVING[_channels(image)])

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return an image without transparency in sRGB; one in RGB is changed in place."""
        mode = self.conversion.mode if self.conversion is not None and self.changes(image) else "RGB"
        converted = image if image.mode == mode else image.convert(mode)
        if self.limited:
            converted = converted.point(_LIMITED * len(converted.getbands()))
        return converted if self.conversion is None or not self.changes(image) else self.conversion(converted)


def colour_space(image: Image.Image, data: bytes) -> ColourSpace:
    """Return the colour space of an image that is open but perhaps not decoded, from its metadata and its file's bytes.

    Raises:
        HighDynamicRange: if its pixels are of that kind.
        MemoryError: if the memory is too small.
    """
    try:
        space = _read_colour_space(image, data)
    except BROKEN as error:
        return ColourSpace(note=f"what it says of its colours cannot be read: not applied ({shorten(str(error), max_characters=150)})")
    if space.conversion is not None and not space.changes(image):
        return ColourSpace(note=f"its colour profile is for {space.conversion.mode}, not for {image.mode}: not applied")
    return space


def _read_colour_space(image: Image.Image, data: bytes) -> ColourSpace:
    if image.format == "PNG":
        return _of_png(data)
    profile = _READ_HERE[image.format](data) if image.format in _READ_HERE else image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:  # a TIFF's may be of any type
        return _of_profile(profile)
    if image.format in _BOXES and (points := _code_points(data)) is not None:
        return _of_code_points(*points, 0, 1)  # the pixels are RGB of full range already
    if _says_adobe_rgb(image):
        return _of_primaries(ADOBE_RGB, ADOBE_RGB_GAMMA)
    # Pillow sets None for a JPEG's profile of which parts are missing.
    return ColourSpace(note="its colour profile is incomplete: not applied" if "icc_profile" in image.info else "")


def _of_png(data: bytes) -> ColourSpace:
    colour = png_colour(data)
    if colour.cicp is not None:
        return _of_code_points(*colour.cicp)
    if colour.profile is not None:
        return _of_profile(colour.profile)
    return _of_primaries(*colour.gamma, note=colour.note) if colour.gamma is not None else ColourSpace(note=colour.note)


def _of_profile(profile: bytes) -> ColourSpace:
    try:
        return ColourSpace(conversion(profile))
    except ProfileUnusable as error:
        return ColourSpace(note=f"its colour profile cannot be used: not applied ({error})")


def _of_primaries(primaries: Primaries, gamma: float | None, *, note: str = "", limited: bool = False) -> ColourSpace:
    try:
        converts = None if primaries == BT709 and gamma is None else conversion(matrix_profile(primaries, gamma))
    except (ProfileUnusable, ValueError) as error:
        return ColourSpace(note=f"its primaries cannot be used: not applied ({error})")
    return ColourSpace(converts, limited, note)


def _of_code_points(primaries: int, transfer: int, matrix: int, full_range: int) -> ColourSpace:
    try:
        return _of_primaries(*cicp.primaries_and_gamma(primaries, transfer, matrix), limited=full_range == 0)
    except ValueError as error:
        return ColourSpace(note=f"{error}: not applied")


def _code_points(data: bytes) -> tuple[int, int] | None:
    """Return primaries and transfer function of an AVIF or HEIC (ISO/IEC 14496-12, 12.1.5), which their libraries do not report."""
    at = data.find(b"colrnclx", 0, _BOXES_BYTES)
    if at < 0 or at + 12 > len(data):
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return None if _UNSPECIFIED in (primaries, transfer) else (primaries, transfer)


def _bmp_profile(data: bytes) -> bytes | None:
    """Return the profile in a BMP of version 5, which Pillow does not read."""
    if int.from_bytes(data[_BMP_HEADER_AT : _BMP_HEADER_AT + 4], "little") < _BMP_V5 or data[_BMP_SPACE_AT : _BMP_SPACE_AT + 4] != b"DEBM":
        return None
    offset, size = (int.from_bytes(data[at : at + 4], "little") for at in (_BMP_PROFILE_AT, _BMP_PROFILE_AT + 4))
    return data[_BMP_HEADER_AT + offset : _BMP_HEADER_AT + offset + size]


_READ_HERE: dict[str | None, Callable[[bytes], bytes | None]] = {"BMP": _bmp_profile, "GIF": gif_profile}
"""What reads the profiles of formats whose profiles Pillow does not read."""


def _says_adobe_rgb(image: Image.Image) -> bool:
    if image.format not in ("JPEG", "MPO", "TIFF", "WEBP"):
        return False
    try:
        exif = image.getexif()
        details = exif.get_ifd(ExifTags.IFD.Exif) if exif else {}
        if not details or details.get(ExifTags.Base.ColorSpace) == _SRGB_EXIF:
            return False
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
        return isinstance(index, str) and index.rstrip("\0 ") == _ADOBE_RGB_INDEX
    except BROKEN:
        return False


def _channels(image: Image.Image) -> str:
    """Return the mode of an image's colours, without transparency and palette."""
    return {"CMYK": "CMYK", "L": "L", "LA": "L", "La": "L", "1": "L"}.get(image.mode, "RGB")
