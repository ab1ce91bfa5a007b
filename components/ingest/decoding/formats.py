"""Image formats that this installation decodes, and what is said of the others.

Promises: loading this module loads what decodes most images, each with one thread. What decodes AVIF, HEIC and JPEG XL takes 6 MB and is
loaded by `load_all`; a confined process can load nothing later, so it calls that before or reads no file without `is_loaded_for`. HEIC and
JPEG XL need the extra `formats` (pillow-heif, pillow-jxl-plugin).
"""

import io
import re
import warnings
from contextlib import suppress
from importlib import import_module

from PIL import Image, TiffImagePlugin, WebPImagePlugin

from components.errors import shorten
from components.ingest.decoding.metadata import BROKEN
from components.ingest.image_formats import HEAD_BYTES, READ_FORMATS, image_format
from components.ingest.verdicts import EXTRA, Rejected

# Pillow loads what reads a format when it first meets one; under a memory limit that may fail, and is not tried a second time.
Image.preinit()
assert {TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format} <= Image.OPEN.keys()
_FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "WebP": "WEBP", "BMP": "BMP", "TIFF": "TIFF", "GIF": "GIF"}
"""The formats that are decoded so far, with Pillow's names for them."""
_SAMPLES = re.compile(r"cannot handle (9|1\d)-bit layers")
_UNREAD_KINDS = re.compile(r"unknown pixel mode|unknown data organization|unsupported BMP|unknown (photometric|raw) mode", re.IGNORECASE)
"""How Pillow describes kinds of a known format that it does not read."""
_UNREAD_CODEC = re.compile(r"Support for this compression format has not been built in: ([^(]*\w)")
"""How libheif describes a file whose images are of another codec than HEVC, such as an AVIF that calls itself HEIC."""
_TAKEN_FOR_IMAGES = {
    b"version https://git-lfs.github.com/spec/": "a git-lfs pointer in place of the image: run `git lfs pull` where it was cloned",
    b"/annex/objects/": "a git-annex pointer in place of the image: run `git annex get` where it was cloned",
    b"<!doctype html": "an HTML page in place of the image: fetch it again",
    b"<html": "an HTML page in place of the image: fetch it again",
}


def _load_avif() -> None:
    from PIL import AvifImagePlugin  # noqa: PLC0415 - see `load_all`

    if not AvifImagePlugin.SUPPORTED:
        raise ImportError("Pillow was built without AVIF")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _load_heif() -> None:
    import_module("pillow_heif").register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _load_jpeg_xl() -> None:
    setattr(import_module("pillow_jxl.JpegXLImagePlugin"), "DECODE_THREADS", 0)  # noqa: B010 - of a module without types; 0: in this thread


_NOT_LOADED = [("AVIF", "AVIF", _load_avif), ("HEIC", "HEIF", _load_heif), ("JPEG XL", "JXL", _load_jpeg_xl)]
"""What `load_all` loads, in the order in which Pillow tries it: a format, Pillow's name for it, and what loads it."""


def is_loaded_for(data: bytes) -> bool:
    """Return whether everything is loaded that may decode a file with the bytes `data`."""
    likes_other = data[4:8] == b"ftyp" or data[:2] == b"\xff\x0a" or data[4:7] == b"JXL"  # as the plugins themselves look at it
    return not (likes_other and _NOT_LOADED)


def load_all() -> None:
    """Load what decodes the other formats, as far as it is installed."""
    while _NOT_LOADED:
        name, of_pillow, load = _NOT_LOADED.pop(0)
        with suppress(ImportError):
            load()
            _FORMATS[name] = of_pillow


def open_image(data: bytes) -> Image.Image:
    """Open an image of a format that is decoded; raises what Pillow does."""
    return Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values()))


def refused_format(data: bytes) -> Rejected | None:
    """Return the verdict on an image of a format that is not decoded here, else None."""
    name = image_format(data[:HEAD_BYTES])
    if name is None or name in _FORMATS:
        return None
    if name in READ_FORMATS:
        return Rejected("unsupported_format", f"{name} is read with the extra package: {EXTRA}")
    return Rejected("unsupported_format", f"{name} is not read; convert it to JPEG or PNG")


def refuse_unidentified(data: bytes) -> Rejected:
    """Return the verdict on a file that Pillow does not identify, with what its reader of the format says of it."""
    name = image_format(data[:HEAD_BYTES])
    if name is None or name not in _FORMATS:
        start = data[:HEAD_BYTES].lstrip().lower()
        others = (what for begin, what in _TAKEN_FOR_IMAGES.items() if start.startswith(begin))
        return Rejected("not_an_image", "empty" if not data else next(others, "cannot identify image file"))
    reason = _reason(data, name)
    if _SAMPLES.search(reason):
        return Rejected("sixteen_bit", f"{name}: {reason}")
    if _UNREAD_KINDS.search(reason):
        return Rejected("unsupported_format", f"a {name} of a kind that is not read ({reason}); convert it to JPEG or PNG")
    if name in ("AVIF", "HEIC", "JPEG XL"):
        return Rejected("truncated", reason)  # their libraries do not say more than that they cannot read it
    return Rejected("not_an_image", f"begins like a {name}, but {reason}")


def refuse_undecodable(error: Exception) -> Rejected:
    """Return the verdict on an image that a library began to read and could not decode."""
    text = error_text(error)
    if codec := _UNREAD_CODEC.search(text):
        return Rejected("unsupported_format", f"a HEIC of a kind that is not read (compressed by {codec[1]}); convert it to JPEG or PNG")
    return Rejected("truncated", text)


def error_text(error: Exception) -> str:
    """Return what a library says of an image in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "cannot be decoded" if text.startswith("Generic Error. Please build `libjxl`") else shorten(text, max_characters=200)


def _reason(data: bytes, name: str) -> str:
    opener, _ = Image.OPEN[_FORMATS[name]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opener(io.BytesIO(data), "")
    except BROKEN as error:
        return error_text(error)
    return "cannot identify image file"
