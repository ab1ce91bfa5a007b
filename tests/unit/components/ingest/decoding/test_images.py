"""The verdict on one image: the whole hostile corpus, and what becomes of what is accepted."""

import dataclasses
import io

import numpy as np
import pytest
from celebdit_testing.corpus import IMAGES, LIMITS, PX, encoded, face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.ingest.dataset.near_duplicates import near_duplicates
from components.ingest.decoding.images import judge, thumbnail
from components.ingest.limits import Limits
from components.ingest.sources.synthetic import encode_face
from components.ingest.verdicts import MEANINGS, Accepted, Rejected

LIMITS_32 = Limits(**LIMITS, max_ratio=200)  # type: ignore[arg-type]
JUDGED = {name: made for name, made in IMAGES.items() if made[1] not in ("duplicate", "ignored")}


def accepted(data: bytes, limits: Limits = LIMITS_32) -> Accepted:
    verdict = judge(data, limits)
    assert isinstance(verdict, Accepted), verdict
    return verdict


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("name", JUDGED)
def test_every_kind_of_file_has_its_verdict(name: str) -> None:
    make, expected = JUDGED[name]
    verdict = judge(make(), LIMITS_32)
    if isinstance(verdict, Accepted):
        assert "+".join(verdict.rules) == expected
        assert pixels(verdict.data).shape == (PX, PX, 3)
    else:
        assert verdict.code == expected, verdict.detail
        assert verdict.detail
        assert verdict.code in MEANINGS


def test_an_rgb_image_of_the_target_size_keeps_its_bytes() -> None:
    for data, extension in ((encode_face(0, 1, PX), "jpg"), (encoded(face(1)), "png")):
        verdict = accepted(data)
        assert verdict.data is data
        assert verdict.extension == extension


def test_an_image_is_stored_alike_whatever_its_file_name() -> None:
    assert accepted(encoded(face(1), "BMP")).sha256 == accepted(encoded(face(1), "TIFF")).sha256


def test_a_larger_image_is_cropped_to_its_centre_and_resized_once() -> None:
    wide = Image.new("RGB", (96, 64), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 80, 64))
    verdict = accepted(encoded(wide))
    assert verdict.rules == ("cropped", "resized")
    assert verdict.source_px == (96, 64)
    assert (pixels(verdict.data) == (0, 0, 255)).all()


def test_transparent_pixels_become_white_and_half_transparent_ones_lighter() -> None:
    clear = Image.new("RGBA", (PX, PX), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    stored = pixels(accepted(encoded(clear)).data)
    assert (stored[0, 0] == (10, 20, 30)).all()
    assert (stored[1:] == 255).all()
    half = pixels(accepted(encoded(Image.new("RGBA", (PX, PX), (100, 100, 100, 128)))).data)
    assert abs(int(half[0, 0, 0]) - 177) <= 1


def test_an_image_that_says_it_lies_on_its_side_is_turned_upright() -> None:
    image = Image.new("RGB", (PX, PX), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, PX, 8))
    exif = Image.Exif()
    exif[274] = 6
    stored = pixels(accepted(encoded(image, "PNG", exif=exif)).data)
    assert (stored[:, -8:] == 0).all()
    assert (stored[:, :24] == 255).all()


def test_a_file_at_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    data = encode_face(0, 0, PX)
    assert isinstance(judge(data, dataclasses.replace(LIMITS_32, max_image_bytes=len(data))), Accepted)
    refused = judge(data, dataclasses.replace(LIMITS_32, max_image_bytes=len(data) - 1))
    assert isinstance(refused, Rejected)
    assert refused.code == "too_many_bytes"


def test_thumbnails_are_small_images_or_none() -> None:
    assert max(Image.open(io.BytesIO(thumbnail(encode_face(0, 0, 256), LIMITS_32))).size) == 96
    for name in ("text.jpg", "claims-much.png", "empty.jpg", "bomb.png"):
        assert thumbnail(IMAGES[name][0](), LIMITS_32) == b""


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_no_bytes_make_the_judge_fail(data: bytes, at: int) -> None:
    jpeg = encode_face(0, 0, PX)
    png = bytearray(encoded(face(0)))
    png[at % len(png)] ^= 0x5A
    for candidate in (data, jpeg[:100] + data, b"\x89PNG\r\n\x1a\n" + data, b"II*\0" + data, b"GIF89a" + data, bytes(png)):
        assert isinstance(judge(candidate, LIMITS_32), Accepted | Rejected)
        thumbnail(candidate, LIMITS_32)


def hashed(image: Image.Image) -> int:
    image_hash = accepted(encoded(image), dataclasses.replace(LIMITS_32, perceptual_hash=True)).perceptual_hash
    assert image_hash is not None
    return image_hash


def test_a_recompressed_face_looks_like_itself_and_another_does_not() -> None:
    again = Image.open(io.BytesIO(encoded(face(1), "JPEG", quality=70)))
    assert (hashed(face(1)) ^ hashed(again)).bit_count() <= 3
    assert (hashed(face(1)) ^ hashed(face(2))).bit_count() > 8


def test_of_near_images_the_first_digest_stays_whatever_their_order_was() -> None:
    images = [("a", 0b0000), ("b", 0b0001), ("c", 0b0111), ("d", 0xFF << 50), ("e", 0xFE << 50)]
    assert list(near_duplicates(images, bits=1)) == [("b", "a"), ("e", "d")]
    assert list(near_duplicates(images, bits=0)) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.lists(st.integers(0, 63), max_size=5), st.integers(0, 5))
def test_no_near_pair_is_missed(hashes: list[int], flips: list[int], bits: int) -> None:
    close = [value ^ sum(1 << flip for flip in set(flips)) for value in hashes]
    images = [(f"{index:04d}", value) for index, value in enumerate([*hashes, *close])]
    removed_digests = {sha for sha, _ in near_duplicates(images, bits=bits)}
    remaining_hashes = [value for sha, value in images if sha not in removed_digests]
    assert all((a ^ b).bit_count() > bits for i, a in enumerate(remaining_hashes) for b in remaining_hashes[:i])
