"""Image formats that this installation decodes, and what is said of the others.

Promises: loading this module loads every library that decodes, each with one thread, because a confined worker can load nothing later.
HEIC and JPEG XL need the extra `formats` (pillow-heif, pillow-jxl-plugin).
"""

from importlib import import_module

from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from components.ingest.image_formats import HEAD_BYTES, READ_FORMATS, image_format
from components.ingest.verdicts import Rejected

# Pillow loads what reads a format when it first meets one; under a memory limit that may fail, and is not tried a second time.
Image.preinit()
assert {TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format} <= Image.OPEN.keys()
_OF_PILLOW = {"JPEG": "JPEG", "PNG": "PNG", "WebP": "WEBP", "BMP": "BMP", "TIFF": "TIFF", "GIF": "GIF"}
_EXTRA = "make extras"


def _load_heif() -> None:
    import_module("pillow_heif").register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _load_jpeg_xl() -> None:
    setattr(import_module("pillow_jxl.JpegXLImagePlugin"), "DECODE_THREADS", 0)  # noqa: B010 - of a module without types; 0: in this thread


def _load_formats() -> dict[str, str]:
    """Return the formats that are decoded, with Pillow's names for them."""
    formats = dict(_OF_PILLOW)
    if AvifImagePlugin.SUPPORTED:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        formats["AVIF"] = "AVIF"
    for name, of_pillow, load in (("HEIC", "HEIF", _load_heif), ("JPEG XL", "JXL", _load_jpeg_xl)):
        try:
            load()
        except ImportError:
            continue
        formats[name] = of_pillow
    return formats


_FORMATS = _load_formats()
READABLE = tuple(_FORMATS.values())
"""Pillow's names of the formats that are decoded."""


def refused_format(data: bytes) -> Rejected | None:
    """Return the verdict on an image of a format that is not decoded here, else None."""
    name = image_format(data[:HEAD_BYTES])
    if name is None or name in _FORMATS:
        return None
    if name in READ_FORMATS:
        return Rejected("unsupported_format", f"{name} is read with the extra package: {_EXTRA}")
    return Rejected("unsupported_format", f"{name} is not read; convert it to JPEG or PNG")
