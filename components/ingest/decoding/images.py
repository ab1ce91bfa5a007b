"""The verdict on one candidate's bytes: accepted as it is, accepted with label rules, or rejected with a code.

Promises: a pure function of bytes and limits. An RGB image of the target size keeps its bytes; anything else is decoded once, turned
upright, made RGB, centre-cropped, resized once with antialiasing and stored losslessly as PNG. Runs inside a worker (`decoder.py`), so that
hostile bytes meet no library in the process that holds credentials.
"""

import hashlib
import io
import warnings
from typing import Literal

from PIL import Image, UnidentifiedImageError

from components.ingest.colour_statistics import reduction_factor
from components.ingest.decoding.alpha import Invisible
from components.ingest.decoding.cicp import HighDynamicRange
from components.ingest.decoding.colour_space import ColourSpace, colour_space
from components.ingest.decoding.formats import (
    error_text,
    is_loaded_for,
    load_all,
    open_image,
    refuse_undecodable,
    refuse_unidentified,
    refused_format,
)
from components.ingest.decoding.headers import avif_bits_per_channel, jpeg_xl_size
from components.ingest.decoding.jpeg_damage import JpegDamaged, check_jpeg
from components.ingest.decoding.metadata import BROKEN, without_metadata
from components.ingest.decoding.normalise import normalise, orientation
from components.ingest.decoding.plain_jpeg import plain_jpeg_size
from components.ingest.decoding.reduced import Pixels, decode_small, perceptual_hash, pixels_of, reduced_jpeg
from components.ingest.image_formats import HEAD_BYTES, image_format
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Code, Rejected, Rule

Image.MAX_IMAGE_PIXELS = None  # `_reject_by_header` has our limit, with a verdict instead of a warning

_KEEPS_BYTES: dict[str, Literal["jpg", "png"]] = {"JPEG": "jpg", "PNG": "png"}
_AS_IS: tuple[Rule, ...] = ("as_is",)
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_TIFF_BITS_PER_SAMPLE = 258
_PNG_DEPTH_AT = 24
_THUMBNAIL_PX = 96


def judge(data: bytes, limits: Limits) -> Accepted | Rejected:
    """Decide on the candidate with the bytes `data`."""
    if (plain := _judge_plain(data, limits)) is not None:
        return plain
    verdict = _judge(data, data, limits)
    if isinstance(verdict, Rejected) and verdict.code in ("truncated", "not_an_image", "decompression_bomb"):
        # Perhaps only its metadata are damaged or large, and they are not needed. Its bytes are not kept then: other programs could not
        # read them.
        stripped = without_metadata(data)
        again = None if stripped is None else _judge(stripped, data, limits)
        return again._replace(detail=f"read without its metadata: {verdict.detail}") if isinstance(again, Accepted) else verdict
    return verdict


def _judge_plain(data: bytes, limits: Limits) -> Accepted | None:
    """Accept an undamaged JPEG of the target size without metadata, as `_judge` would with more work; None for anything else."""
    side = limits.image_px
    if plain_jpeg_size(data) != (side, side) or side**2 > limits.max_image_pixels or len(data) > limits.max_image_bytes:
        return None
    try:
        small = reduced_jpeg(data, (side, side))
    except (JpegDamaged, MemoryError):
        return None
    return None if small is None else _keep_bytes(data, "JPEG", small, limits)


def _judge(data: bytes, original: bytes, limits: Limits) -> Accepted | Rejected:
    """Decide on an image by its bytes, perhaps without metadata, and by those of its file, whose colour space counts."""
    if len(original) > limits.max_image_bytes:
        return Rejected("too_many_bytes", f"more than {limits.max_image_bytes} bytes")
    if not is_loaded_for(data):
        load_all()
    if (refused := refused_format(data) or _reject_unopened(data, limits)) is not None:
        return refused
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(data)
            refused = _reject_by_header(image, data, limits)
            space = None if refused else colour_space(image, original)
    except MemoryError:
        return Rejected("out_of_memory", "reading its header takes more memory than a worker may use")
    except HighDynamicRange as error:
        return Rejected("high_dynamic_range", str(error))
    except BROKEN as error:
        is_unidentified = isinstance(error, UnidentifiedImageError)
        return refuse_unidentified(data) if is_unidentified else Rejected(_opening_code(data, error), error_text(error))
    assert space is not None or refused is not None, "what the header does not refuse has a colour space"
    return refused or _decode(image, data, space, limits, may_keep=data is original)  # type: ignore[arg-type]


def thumbnail(data: bytes, limits: Limits, side_px: int = _THUMBNAIL_PX) -> bytes:
    """Return a small JPEG of an image for the report, or nothing if that would be expensive."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(data)
            if image.width * image.height > limits.max_image_pixels:
                return b""
            image.draft("RGB", (side_px, side_px))
            image.thumbnail((side_px, side_px))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=80)
    except (MemoryError, *BROKEN):
        return b""
    return buffer.getvalue()


def _opening_code(data: bytes, error: Exception) -> Code:
    if "decompressed data too large" in str(error).lower() or "text chunk" in str(error).lower():
        return "decompression_bomb"
    return "truncated" if image_format(data[:HEAD_BYTES]) is not None else "not_an_image"


def _reject_by_header(image: Image.Image, data: bytes, limits: Limits) -> Rejected | None:
    """Reject by the header, before any pixel is decoded."""
    if (refused := _reject_by_size(image.size, data, limits)) is not None:
        return refused
    if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is a photograph with previews
        return Rejected("animated", "more than one frame")
    if _bits_per_channel(image, data) > 8:
        return Rejected("sixteen_bit", f"mode {image.mode} with {_bits_per_channel(image, data)} bits per channel")
    return None


def _reject_unopened(data: bytes, limits: Limits) -> Rejected | None:
    """Reject by what Pillow's libraries would say too late, or not at all."""
    if (size := jpeg_xl_size(data)) is not None:
        return _reject_by_size(size, data, limits)
    bits = avif_bits_per_channel(data) if image_format(data[:HEAD_BYTES]) == "AVIF" else 8
    return Rejected("sixteen_bit", f"AVIF with {bits} bits per channel") if bits > 8 else None


def _reject_by_size(size: tuple[int, int], data: bytes, limits: Limits) -> Rejected | None:
    width, height = size
    pixels = width * height
    if pixels > limits.max_image_pixels:
        bomb = pixels * 3 > limits.max_ratio * len(data)
        code: Code = "decompression_bomb" if bomb else "too_many_pixels"
        return Rejected(code, f"{width}x{height} in {len(data)} bytes, at most {limits.max_image_pixels} pixels")
    if min(width, height) < limits.image_px:
        return Rejected("too_small", f"{width}x{height}, at least {limits.image_px} per side")
    return None


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Return the depth of an image's channels; Pillow shows a 16-bit RGB PNG as an 8-bit one and cuts its values off."""
    if image.format == "PNG":
        return data[_PNG_DEPTH_AT]
    if image.format == "TIFF":
        depths = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return max(depths) if isinstance(depths, tuple) else int(depths)
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    return 16 if image.mode in _DEEP_MODES else 8


def _decode(image: Image.Image, data: bytes, space: ColourSpace, limits: Limits, *, may_keep: bool) -> Accepted | Rejected:
    source_px, kind = image.size, image.format or ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The orientation first: Pillow reads a PNG to its end for it, and a transparent colour may be declared only there.
            turned = orientation(image)
            if may_keep and kind in _KEEPS_BYTES and turned in (1, None) and space.is_srgb and _is_finished(image, limits.image_px):
                small, rules = decode_small(image, data), _AS_IS
            else:
                if kind in ("JPEG", "MPO"):
                    check_jpeg(data, image.mode)
                image.load()
                rgb, rules = normalise(image, limits.image_px, orientation=turned or 1, space=space)
                small = pixels_of(rgb.reduce(reduction_factor(limits.image_px)))
    except Invisible:
        return Rejected("transparent", "every pixel of the centre square is transparent")
    except MemoryError:
        return Rejected("out_of_memory", f"{source_px[0]}x{source_px[1]} takes more memory than a worker may use")
    except BROKEN as error:
        return refuse_undecodable(error)
    detail = space.note or ("its EXIF data cannot be read" if turned is None else "")
    if rules is _AS_IS:
        return _keep_bytes(data, kind, small, limits, detail)
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG", icc_profile=None)
    stored = buffer.getvalue()
    return Accepted(
        data=stored,
        extension="png",
        sha256=hashlib.sha256(stored).hexdigest(),
        rules=rules,
        source_px=source_px,
        source_format=kind.lower(),
        small=small.data,
        perceptual_hash=perceptual_hash(small),
        detail=detail,
    )


def _keep_bytes(data: bytes, kind: str, small: Pixels, limits: Limits, detail: str = "") -> Accepted:
    """Accept an image of the target size whose bytes are kept."""
    return Accepted(
        data=data,
        extension=_KEEPS_BYTES[kind],
        sha256=hashlib.sha256(data).hexdigest(),
        rules=_AS_IS,
        source_px=(limits.image_px, limits.image_px),
        source_format=kind.lower(),
        small=small.data,
        perceptual_hash=perceptual_hash(small) if limits.perceptual_hash else None,
        detail=detail,
    )


def _is_finished(image: Image.Image, image_px: int) -> bool:
    """Return whether an image that is upright and in sRGB can be kept byte for byte."""
    return image.size == (image_px, image_px) and image.mode == "RGB" and "transparency" not in image.info
