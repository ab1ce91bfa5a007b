"""Metadata of every format, odd and damaged: an image whose pixels can be read is accepted, and no worker dies of it."""

import io
import struct
import zlib
from contextlib import nullcontext

import pytest
from celebdit_testing.corpus import encoded, face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.ingest.candidates import Candidate
from components.ingest.decoding import decoder
from components.ingest.decoding.images import judge
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted

PX = 32
LIMITS = Limits(image_px=PX, max_image_bytes=10**8, max_image_pixels=10**8, max_ratio=10**6)
PICTURE = face(2)

TAGS = st.one_of(
    st.sampled_from([271, 274, 282, 296, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34675, 34853, 37500]), st.integers(300, 65535)
)
STRUCTURE = {*range(254, 285), 317, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, *range(512, 533)}
"""TIFF tags that say where and how the pixels are coded, or may."""
ENTRIES = st.lists(
    st.tuples(TAGS, st.integers(0, 20), st.integers(0, 2**32 - 1) | st.integers(0, 4), st.binary(min_size=4, max_size=4)), max_size=6
)
BYTES = st.binary(max_size=80)


def directory(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> bytes:
    rows = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", 0) + tail


EXIF = st.one_of(BYTES, st.builds(directory, ENTRIES, BYTES))
PROFILE = st.one_of(BYTES, st.builds(lambda body: bytes(36) + b"acsp" + body, BYTES))


def jpeg(exif: bytes, profile: bytes, text: bytes) -> bytes:
    data = encoded(PICTURE, "JPEG")
    parts = [
        (0xE1, b"Exif\0\0" + exif),
        (0xE2, b"ICC_PROFILE\0\1\1" + profile),
        (0xED, b"Photoshop 3.0\0" + text),
        (0xE1, text),
        (0xE2, b"MPF\0" + exif),
    ]
    return data[:2] + b"".join(bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body for marker, body in parts) + data[2:]


def png(exif: bytes, profile: bytes, text: bytes) -> bytes:
    data = encoded(PICTURE)
    parts = [
        (b"iCCP", b"x\0\0" + zlib.compress(profile)),
        *((kind, text) for kind in (b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"hIST", b"bKGD", b"tIME", b"iTXt", b"zTXt", b"tEXt", b"prVt")),
        (b"cICP", text[:3] + b"\1"),
        (b"eXIf", exif),
    ]
    chunks = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return data[:33] + chunks + data[33:]


def webp(exif: bytes, profile: bytes, text: bytes) -> bytes:
    return encoded(PICTURE, "WEBP", lossless=True, exif=exif, icc_profile=profile, xmp=text)


def tiff(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Pixels at byte 8, then a directory with the tags that they need and others."""
    pixels = PICTURE.tobytes()
    needed = {
        256: (4, PX),
        257: (4, PX),
        258: (3, 0),
        259: (3, 1),
        262: (3, 2),
        273: (4, 8),
        277: (3, 3),
        278: (4, PX),
        279: (4, len(pixels)),
    }
    depths_at = 8 + len(pixels)
    rows = [(tag, kind, 1, struct.pack("<I", value)) for tag, (kind, value) in needed.items() if tag != 258]
    rows += [(258, 3, 3, struct.pack("<I", depths_at))]
    rows += [(tag, kind, count, value) for tag, kind, count, value in entries if tag not in STRUCTURE]
    body = directory(sorted(rows))[8:]
    return b"II*\0" + struct.pack("<I", depths_at + 6) + pixels + struct.pack("<HHH", 8, 8, 8) + body


def gif(text: bytes) -> bytes:
    data = encoded(PICTURE.quantize(200), "GIF")
    at = data.index(b"\x2c", 13 + 3 * 256) if data[10] & 7 == 7 else data.index(b"\x2c")
    block = bytes([len(text)]) + text + b"\0"
    return data[:at] + b"\x21\xfe" + block + b"\x21\xff\x0b" + b"ICCRGBG1012" + block + b"\x21\xff\x0bXMP DataXMP" + block + data[at:]


def bmp(profile: bytes, text: bytes) -> bytes:
    plain = encoded(PICTURE, "BMP")
    rows = plain[54:]
    header = struct.pack("<I", 124) + plain[18:54] + bytes(16) + (b"DEBM" if len(text) % 2 else text.ljust(4)[:4]) + text.ljust(48)[:48]
    header += struct.pack("<IIII", 4, 124 + len(rows), len(profile) + len(text), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(rows) + len(profile), 0, 0, 138) + header + rows + profile


FILES = st.one_of(
    st.builds(jpeg, EXIF, PROFILE, BYTES),
    st.builds(png, EXIF, PROFILE, BYTES.filter(lambda text: text[1:2] not in (b"\x10", b"\x12"))),
    st.builds(webp, EXIF.filter(bool), PROFILE.filter(bool), BYTES.filter(bool)),
    st.builds(tiff, ENTRIES),
    st.builds(gif, BYTES.filter(bool)),
    st.builds(bmp, PROFILE, BYTES),
)


@settings(max_examples=120, deadline=None)
@given(FILES)
def test_no_metadata_of_any_format_decide_on_an_image(data: bytes) -> None:
    verdict = judge(data, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert isinstance(verdict.data, bytes)
    assert Image.open(io.BytesIO(verdict.data)).size == (PX, PX)


@settings(max_examples=2, deadline=None)
@given(st.lists(FILES, min_size=40, max_size=40))
def test_no_worker_dies_of_metadata(files: list[bytes]) -> None:
    with DecoderPool(LIMITS, workers=1) as pool:
        pool.start()
        (first,) = pool._alive
        judged = [verdict for _, verdict in pool.judge(Candidate(str(n), data) for n, data in enumerate(files))]
        assert pool._alive == {first}
    assert all(isinstance(verdict, Accepted) for verdict in judged), judged


@pytest.mark.parametrize("failure", [RuntimeError, LookupError, SystemError, Exception])
def test_what_a_parser_raises_costs_one_verdict(failure: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: the fault is made here, because the known ones are mended."""

    def raise_it(data: bytes, limits: Limits) -> None:
        raise failure("of a parser")

    monkeypatch.setattr(decoder, "judge", raise_it)
    monkeypatch.setattr(decoder, "thumbnail", raise_it)
    # A time limit would stay with this process.
    facts, thumbnail = decoder._judge_one(encoded(PICTURE), None, False, archive=None, limits=LIMITS, time_limit=nullcontext())  # type: ignore[arg-type]
    assert facts[:2] == ("truncated", f"{failure.__name__}: of a parser")
    assert thumbnail == b""


def test_what_could_not_be_read_is_in_the_verdict() -> None:
    for data in (jpeg(b"II*\0\xff\xff\xff\xff", b"", b""), png(b"garbage", b"", b"")):
        verdict = judge(data, LIMITS)
        assert isinstance(verdict, Accepted)
        assert verdict.detail
    clean = judge(encoded(PICTURE), LIMITS)
    assert isinstance(clean, Accepted)
    assert clean.detail == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_orientation_in_xmp_survives_damage_to_other_metadata(kind: str) -> None:
    """Photo editors write the orientation there too, or only there."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    wide = face(3, 2 * PX).crop((0, 0, 2 * PX, PX))
    data = encoded(wide, kind, **({"xmp": xmp} if kind == "JPEG" else {}))
    if kind == "JPEG":
        damaged = data[:2] + b"\xff\xed" + struct.pack(">H", 25) + b"Photoshop 3.0\x008BIM\4\4\0\0\0" + data[2:]
    else:
        text, broken = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp, b"\0\0"
        chunks = [(b"iTXt", text), (b"pHYs", broken)]
        body = b"".join(
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)) for name, content in chunks
        )
        damaged = data[:33] + body + data[33:]
    verdict = judge(damaged, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert "upright" in verdict.rules


@pytest.mark.parametrize("body", [b"", b"JFIF", b"JFIF\0", b"JFIF\0\1\1", b"JFIF\0\1\1\0\0\1", b"JFXX\0\x10"])
@pytest.mark.parametrize("fill", [b"", b"\xff\xff"])
def test_a_jfif_segment_that_is_too_short_does_not_decide(body: bytes, fill: bytes) -> None:
    data = encoded(PICTURE, "JPEG")
    length = int.from_bytes(data[4:6], "big")
    assert data[2:4] == b"\xff\xe0"
    odd = data[:2] + fill + b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body + data[4 + length :]
    assert isinstance(judge(odd, LIMITS), Accepted)
