"""Formats by content, with and without the libraries of the extra `formats`, and alpha channels."""

import struct
import subprocess
import sys

import pytest
from celebdit_testing.corpus import LIMITS, PX, bmp_without_alpha, encoded, face
from PIL import Image

from components.ingest.decoding.headers import jpeg_xl_size
from components.ingest.decoding.images import judge
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Rejected

BOUNDS = Limits(max_ratio=200, **LIMITS)
WITHOUT_THE_EXTRA = """
import sys
sys.modules.update(pillow_heif=None, pillow_jxl=None)
from components.ingest.decoding.images import judge
from components.ingest.limits import Limits
for data in map(bytes.fromhex, sys.stdin.read().split()):
    verdict = judge(data, Limits(image_px=32, max_image_bytes=10**6, max_image_pixels=10**6, max_ratio=200))
    print(getattr(verdict, "code", "accepted"), getattr(verdict, "detail", ""))
"""


def test_without_the_extra_the_verdict_names_it_and_the_other_formats_are_read() -> None:
    images = [encoded(face(0, 2 * PX), kind) for kind in ("HEIF", "JXL", "AVIF", "JPEG")]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA],
        input="\n".join(data.hex() for data in images),
        text=True,
        capture_output=True,
        check=True,
    )
    heic, jpeg_xl, avif, jpeg = found.stdout.splitlines()
    assert heic == "unsupported_format HEIC is read with the extra package: make extras"
    assert jpeg_xl == "unsupported_format JPEG XL is read with the extra package: make extras"
    assert (avif.strip(), jpeg.strip()) == ("accepted", "accepted")


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "AVIF"])
def test_a_photo_of_another_format_looks_as_it_did(kind: str) -> None:
    photo = face(3, 2 * PX)
    verdict = judge(encoded(photo, kind, quality=95), BOUNDS)
    assert isinstance(verdict, Accepted)
    expected = judge(encoded(photo), BOUNDS)
    assert isinstance(expected, Accepted)
    assert verdict.source_px == (2 * PX, 2 * PX)
    differences = [abs(a - b) for a, b in zip(verdict.small, expected.small, strict=True)]
    assert sum(differences) / len(differences) < 3


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (120, 100), (320, 180), (513, 512), (3, 4000)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "JXL")
    assert jpeg_xl_size(data) == size


@pytest.mark.parametrize("begin", [b"", b"\0\0\0\x0c"])
def test_only_a_jpeg_xl_is_searched_for_the_size_of_one(begin: bytes) -> None:
    """A JPEG's comment may hold what looks like a JPEG XL of 8 pixels a side."""
    jpeg_xl = encoded(Image.new("RGB", (8, 8)), "JXL")
    data = encoded(face(6), "JPEG", quality=95, comment=begin + b"jxlc" + jpeg_xl[jpeg_xl.index(b"\xff\x0a") :])
    verdict = judge(data, BOUNDS)
    assert isinstance(verdict, Accepted), verdict
    assert (jpeg_xl_size(data), verdict.data) == (None, data)


def test_a_jpeg_xl_that_is_too_large_is_refused_by_its_header() -> None:
    data = encoded(Image.new("RGB", (1100, 1000)), "JXL")
    verdict = judge(data, BOUNDS)
    assert isinstance(verdict, Rejected)
    assert (verdict.code, verdict.detail.split(" ")[0]) == ("decompression_bomb", "1100x1000")


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque_and_one_that_uses_it_is_not() -> None:
    image = face(5)
    verdict = judge(bmp_without_alpha(image), BOUNDS)
    assert isinstance(verdict, Accepted)
    assert isinstance(verdict.data, bytes)
    same = judge(encoded(image), BOUNDS)
    assert isinstance(same, Accepted)
    assert verdict.small == same.small
    used = bytearray(bmp_without_alpha(image))
    used[-1] = 255  # one pixel can be seen
    seen = judge(bytes(used), BOUNDS)
    assert isinstance(seen, Accepted)
    assert seen.small != same.small


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (PX, PX), (1, 2, 3, 0)),
        Image.new("LA", (PX, PX), (9, 0)),
        Image.new("RGBA", (2 * PX, 3 * PX), (0, 0, 0, 0)),
    ],
)
def test_an_image_that_is_transparent_everywhere_is_no_white_square(image: Image.Image) -> None:
    verdict = judge(encoded(image), BOUNDS)
    assert isinstance(verdict, Rejected)
    assert verdict.code == "transparent"
    image.putpixel((image.width // 2, image.height // 2), (5, 255) if image.mode == "LA" else (5, 5, 5, 1))
    assert isinstance(judge(encoded(image), BOUNDS), Accepted)


def test_a_palette_and_a_key_colour_that_hide_everything_are_transparent_too() -> None:
    for mode, key in (("P", 0), ("RGB", (0, 0, 0)), ("L", 0)):
        verdict = judge(encoded(Image.new(mode, (PX, PX)), transparency=key), BOUNDS)
        assert isinstance(verdict, Rejected)
        assert verdict.code == "transparent"


def twelve_bits() -> bytes:
    data = bytearray(encoded(face(0), "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    return bytes(data)


def without_height() -> bytes:
    data = bytearray(encoded(face(0), "JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 7] = b"\0\0"
    return bytes(data)


def five_channels() -> bytes:
    """A TIFF of four inks and an alpha channel, which Pillow does not read."""
    data = bytearray(encoded(face(0).convert("CMYK"), "TIFF"))
    at = data.rfind(struct.pack("<HHI", 277, 3, 1))
    struct.pack_into("<H", data, at + 8, 5)
    return bytes(data)


def avif_named_heic() -> bytes:
    return encoded(face(0, 2 * PX), "AVIF").replace(b"ftypavif", b"ftypheic", 1)


def jpeg_2000_in_heic() -> bytes:
    """A HEIC whose one image calls itself JPEG 2000; its configuration is a box of eight bytes."""
    data = bytearray(avif_named_heic().replace(b"av01", b"j2k1").replace(b"av1C", b"j2kH"))
    at, image = data.find(b"j2kH"), data.find(b"mdat") + 4
    old = struct.unpack_from(">I", data, at - 4)[0]
    more = 16 - old
    for box in (b"meta", b"iprp", b"ipco", b"j2kH"):
        size_at = data.find(box) - 4
        struct.pack_into(">I", data, size_at, struct.unpack_from(">I", data, size_at)[0] + more)
    struct.pack_into(">I", data, data.find(struct.pack(">I", image)), image + more)
    data[at + 4 : at - 4 + old] = struct.pack(">I4s", 8, b"free")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "code", "detail"),
    [
        (twelve_bits(), "sixteen_bit", "12-bit"),
        (five_channels(), "unsupported_format", "a TIFF of a kind that is not read"),
        (avif_named_heic(), "unsupported_format", "a HEIC of a kind that is not read (compressed by AV1); convert it to JPEG or PNG"),
        (jpeg_2000_in_heic(), "unsupported_format", "a HEIC of a kind that is not read (compressed by JPEG 2000); convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not_an_image", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "not_an_image", "an HTML page"),
        (b"", "not_an_image", "empty"),
        (without_height(), "not_an_image", "begins like a JPEG"),
        (encoded(face(0), "JXL")[:200], "truncated", "cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, code: str, detail: str) -> None:
    verdict = judge(data, BOUNDS)
    assert isinstance(verdict, Rejected)
    assert verdict.code == code
    assert detail in verdict.detail
    assert "\n" not in verdict.detail
