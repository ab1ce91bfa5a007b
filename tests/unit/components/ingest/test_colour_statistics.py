"""The colours of images, and the small images that they are taken of."""

import dataclasses
import io
import struct
import zlib
from functools import cache

import numpy as np
import pytest
from celebdit_testing.corpus import LIMITS, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.ingest.colour_statistics import colour_statistics, reduction_factor
from components.ingest.decoding.images import judge
from components.ingest.limits import Limits
from components.ingest.sources.synthetic import draw_face
from components.ingest.verdicts import Accepted

PX = 256
LIMITS_256 = dataclasses.replace(Limits(**LIMITS, max_ratio=200), image_px=PX, max_image_bytes=2**24)  # type: ignore[arg-type]
KINDS = {
    "baseline": {"subsampling": 0},
    "subsampled": {"subsampling": 2},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 3},
}


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def small(data: bytes, px: int = PX) -> bytes:
    verdict = judge(data, dataclasses.replace(LIMITS_256, image_px=px))
    assert isinstance(verdict, Accepted), verdict
    return verdict.small


@cache
def jpeg(kind: str) -> bytes:
    return encoded(draw_face(0, 5, PX), "JPEG", quality=90, **KINDS[kind])


def test_statistics_use_images_of_32_pixels_or_somewhat_more() -> None:
    assert [reduction_factor(px) for px in (8, 32, 63, 64, 256, 300, 511, 512, 2048)] == [1, 1, 1, 2, 8, 8, 8, 16, 64]
    for px in (8, 40, 64, 100, 300, 600):
        side = -(-px // reduction_factor(px))
        for kind in ("JPEG", "PNG", "BMP"):
            assert len(small(encoded(draw_face(0, 5, px), kind), px)) == 3 * side**2


@pytest.mark.parametrize(("kind", "px"), [("PNG", 32), ("JPEG", 48), ("BMP", 60)])
def test_of_a_small_image_they_are_those_of_its_pixels(kind: str, px: int) -> None:
    data = encoded(draw_face(0, 5, px), kind)
    levels = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3) / 255
    ((mean, std),) = colour_statistics([small(data, px)])
    assert mean == pytest.approx(levels.mean(0), abs=1e-6)
    assert std == pytest.approx(levels.std(0), abs=1e-6)


@pytest.mark.parametrize(("kind", "px"), [("PNG", 256), ("JPEG", 256), ("BMP", 256), ("JPEG", 512)])
def test_of_a_large_image_they_are_those_of_its_parts(kind: str, px: int) -> None:
    """A JPEG is scaled down by its decoder, the others by averaging: no eye would see the difference."""
    data = encoded(draw_face(0, 5, px), kind)
    scale = reduction_factor(px)
    levels = np.asarray(Image.open(io.BytesIO(data)), float)[: px // scale * scale, : px // scale * scale] / 255
    parts = levels.reshape(px // scale, scale, px // scale, scale, 3).mean((1, 3)).reshape(-1, 3)
    ((mean, std),) = colour_statistics([small(data, px)])
    assert mean == pytest.approx(parts.mean(0), abs=0.006)
    assert std == pytest.approx(parts.std(0), abs=0.006)


def test_many_at_once_are_what_each_is_alone() -> None:
    images = [small(encoded(draw_face(0, index, PX))) for index in range(5)] + [bytes(3 * 32**2), b"\xff" * 3 * 32**2]
    assert colour_statistics(images) == [colour_statistics([image])[0] for image in images]
    assert colour_statistics(images)[-2:] == [((0.0,) * 3, (0.0,) * 3), ((1.0,) * 3, (0.0,) * 3)]
    assert colour_statistics([]) == []


def is_complete(data: bytes) -> bool:
    """Whether a decoder that makes every pixel is content with `data`."""
    try:
        Image.open(io.BytesIO(data), formats=("JPEG",)).load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_is_found_whether_or_not_every_pixel_is_made(kind: str, data: st.DataObject) -> None:
    broken = bytearray(jpeg(kind))
    for at in data.draw(st.lists(st.integers(0, len(broken) - 1) | st.integers(0, 700), max_size=4), "flipped"):
        broken[at] ^= data.draw(st.integers(1, 255), "by")
    del broken[data.draw(st.just(len(broken)) | st.integers(0, len(broken)), "cut at") :]
    verdict = judge(bytes(broken), LIMITS_256)
    if isinstance(verdict, Accepted) and verdict.rules == ("as_is",):
        assert is_complete(bytes(broken))
    elif not isinstance(verdict, Accepted) and verdict.code == "truncated":
        assert bytes(broken) != jpeg(kind), "a decoder may be content with damage that libjpeg warns of"


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_of_a_jpeg_are_found(kind: str) -> None:
    """All along, and byte by byte near its end, where a decoder may be content without the last ones."""
    data = jpeg(kind)
    ends = [*range(2, len(data) - 60, 97), *range(len(data) - 60, len(data) + 1)]
    accepted = [isinstance(judge(data[:end], LIMITS_256), Accepted) for end in ends]
    assert accepted == [is_complete(data[:end]) for end in ends]
    assert accepted[-1]
    assert not any(accepted[:-60])


def test_the_small_jpeg_of_any_size_is_as_large_as_that_of_any_other_format() -> None:
    for px in range(8, 300):
        data = encoded(Image.new("RGB", (px, px), (9, 99, 199)), "JPEG")
        assert len(small(data, px)) == 3 * (-(-px // reduction_factor(px))) ** 2


@pytest.mark.parametrize(("chunk", "rule"), [(b"tRNS" + b"\0\1" * 3, "converted"), (b"eXIf" + exif_of(6), "upright")])
def test_what_a_png_says_after_its_pixels_counts(chunk: bytes, rule: str) -> None:
    plain = encoded(draw_face(0, 5, PX), "PNG")
    at = plain.index(b"IEND") - 4
    more = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for data, rules in ((plain, "as_is"), (plain[:at] + more + plain[at:], rule)):
        verdict = judge(data, LIMITS_256)
        assert isinstance(verdict, Accepted)
        assert verdict.rules == (rules,)
