"""Images made to keep a decoder busy or to take it over, and images whose metadata is odd: each gets its verdict, the others go on."""

import io
import struct
import time
import zlib
from pathlib import Path

import psutil
import pytest
from celebdit_testing.corpus import many_scans
from PIL import Image

from components.ingest.candidates import Candidate
from components.ingest.decoding.images import judge
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Rejected
from components.system.confinement import is_confined

LIMITS = Limits(image_px=32, max_image_bytes=10**8, max_image_pixels=10**8, max_ratio=10**6)


def face(number: int) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((32, 32), 20 + number).convert("RGB").save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("scans", [pytest.param(1500, id="in one call of the library"), pytest.param(20_000, id="in many calls")])
def test_an_image_that_takes_minutes_is_rejected_and_the_next_ones_are_judged(scans: int) -> None:
    slow = many_scans(scans)
    limits = Limits(**{**vars(LIMITS), "max_image_s": 0.5})
    began_s = time.monotonic()
    with DecoderPool(limits, workers=1) as pool:
        judged = [verdict for _, verdict in pool.judge([Candidate("a", face(0)), Candidate("slow", slow), Candidate("b", face(1))])]
    assert time.monotonic() - began_s < 40
    before, rejected, after = judged
    assert isinstance(before, Accepted)
    assert isinstance(after, Accepted)
    assert rejected == Rejected("too_slow", "not decoded in 0.5 s of processor time")


@pytest.mark.fault
@pytest.mark.slow
def test_the_time_is_that_of_each_image_and_not_of_all() -> None:
    """Many honest images take longer together than one may."""
    data = io.BytesIO()
    Image.effect_noise((2000, 2000), 50).convert("RGB").save(data, "PNG")
    limits = Limits(**{**vars(LIMITS), "max_image_s": 0.6})
    with DecoderPool(limits, workers=1) as pool:
        judged = [verdict for _, verdict in pool.judge(Candidate(f"{number}", data.getvalue()) for number in range(30))]
        (worker,) = pool._alive
        spent = psutil.Process(worker.process.pid).cpu_times()
    assert all(isinstance(verdict, Accepted) for verdict in judged)
    assert spent.user + spent.system > limits.max_image_s + 2, "together they took longer than one may"


def test_decoders_are_confined_whoever_starts_them() -> None:
    with DecoderPool(LIMITS, workers=2) as pool:
        assert all(isinstance(verdict, Accepted) for _, verdict in pool.judge(Candidate(f"{n}", face(n)) for n in range(80)))
        confined = [is_confined(worker.process.pid) for worker in pool._alive]
    assert confined == [True, True]


def tiff(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> bytes:
    """An EXIF block of (tag, type, count, four bytes of value), little-endian."""
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0" + body + struct.pack("<I", 0) + tail


def after(entries: int) -> bytes:
    """The position behind a first directory of so many entries."""
    return struct.pack("<I", 8 + 2 + 12 * entries + 4)


TURNED = (274, 3, 1, struct.pack("<HH", 6, 0))
ODD = {
    "negative rational": ([TURNED, (282, 10, 1, after(2))], struct.pack("<ii", -1, 3)),
    "division by zero": ([TURNED, (282, 10, 1, after(2))], struct.pack("<ii", -1, 0)),
    "text for a number": ([TURNED, (296, 2, 2, b"2\0\0\0")], b""),
    "unknown type": ([TURNED, (40962, 99, 1, b"2\0\0\0")], b""),
    "value far away": ([TURNED, (37500, 7, 10**6, struct.pack("<I", 10**8))], b""),
    "directory within itself": ([TURNED, (34665, 4, 1, struct.pack("<I", 8))], b""),
    "number too large": ([TURNED, (256, 4, 1, b"\xff\xff\xff\xff")], b""),
    "gps": ([TURNED, (34853, 4, 1, after(2))], struct.pack("<HHHII", 1, 6, 10, 1, 56) + struct.pack("<I", 0) + struct.pack("<ii", -5, 1)),
    "thumbnail far away": ([TURNED, (513, 4, 1, struct.pack("<I", 10**9)), (514, 4, 1, struct.pack("<I", 10**9))], b""),
}


def photo() -> Image.Image:
    image = Image.new("RGB", (96, 80), (200, 30, 30))
    image.paste((20, 60, 220), (0, 0, 96, 40))  # blue above red: to the right once it is turned
    return image


@pytest.mark.parametrize("kind", ODD)
def test_a_turned_photo_with_odd_metadata_is_accepted_and_turned(kind: str) -> None:
    data = io.BytesIO()
    photo().save(data, "JPEG", quality=95)
    payload = tiff(*ODD[kind])
    marked = data.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data.getvalue()[2:]
    verdict = judge(marked, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert "upright" in verdict.rules
    assert isinstance(verdict.data, bytes)
    red, _, blue = Image.open(io.BytesIO(verdict.data)).getpixel((28, 4))  # type: ignore[misc]
    assert blue > red


@pytest.mark.parametrize("exif", [b"garbage", b"", b"II*\0\xff\xff\xff\xff", b"MM\0*" + b"\0\0\0\x08" + b"\xff" * 40])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_that_cannot_be_read_costs_no_image(kind: str, exif: bytes) -> None:
    data = io.BytesIO()
    photo().save(data, kind, **({} if kind == "PNG" else {"exif": b"Exif\0\0" + exif}))
    whole = data.getvalue()
    if kind == "PNG":
        chunk = b"eXIf" + exif
        whole = whole[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]
    verdict = judge(whole, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert "upright" not in verdict.rules


def png_chunk(kind: bytes, data: bytes, *, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ checksum)


BROKEN_CHUNKS = {
    "profile with an unknown compression": png_chunk(b"iCCP", b"name\0\7garbage"),
    "text with an unknown compression": png_chunk(b"zTXt", b"key\0\7garbage"),
    "short density": png_chunk(b"pHYs", b"\0\0"),
    "short time": png_chunk(b"tIME", b"\0"),
    "short primaries": png_chunk(b"cHRM", b"\0\1"),
    "wrong checksum": png_chunk(b"tEXt", b"Title\0a photo", checksum=1),
    "unknown and damaged": png_chunk(b"prVt", b"x" * 9, checksum=1),
    "short gamma": png_chunk(b"gAMA", b""),
    "short rendering": png_chunk(b"sRGB", b""),
}


@pytest.mark.parametrize("kind", BROKEN_CHUNKS)
@pytest.mark.parametrize("image_px", [32, 80], ids=["converted", "of the right size"])
def test_a_png_is_accepted_whatever_its_ancillary_chunks_hold(kind: str, image_px: int) -> None:
    data = io.BytesIO()
    photo().crop((0, 0, 80, 80)).save(data, "PNG")
    damaged = data.getvalue()[:33] + BROKEN_CHUNKS[kind] + data.getvalue()[33:]
    verdict = judge(damaged, Limits(**{**vars(LIMITS), "image_px": image_px}))
    assert isinstance(verdict, Accepted), verdict
    stored = Image.open(io.BytesIO(verdict.data if isinstance(verdict.data, bytes) else b""))
    assert stored.getpixel((4, 4)) == (20, 60, 220)


SEGMENTS = (b"", b"MPF\0garbage", b"Exif\0\0II*\0", b"ICC_PROFILE\0\5\1x", b"Photoshop 3.0\x008BIM\4\4\0", b"\xff" * 50)


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xE3, 0xE8, 0xED, 0xEE, 0xEF, 0xFE])
@pytest.mark.parametrize("content", SEGMENTS)
def test_a_jpeg_is_accepted_whatever_its_application_segments_hold(marker: int, content: bytes) -> None:
    data = io.BytesIO()
    photo().save(data, "JPEG", quality=95)
    segment = bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content
    assert isinstance(judge(data.getvalue()[:2] + segment + data.getvalue()[2:], LIMITS), Accepted)


def test_damaged_pixels_are_not_taken_for_damaged_metadata() -> None:
    data = io.BytesIO()
    photo().save(data, "PNG")
    place = data.getvalue().index(b"IDAT") + 30
    damaged = data.getvalue()[:33] + BROKEN_CHUNKS["short density"] + data.getvalue()[33:place] + b"\0\0\0" + data.getvalue()[place + 3 :]
    verdict = judge(damaged, LIMITS)
    assert isinstance(verdict, Rejected)
    assert verdict.code == "truncated"


def test_a_turned_photo_stays_turned_when_another_segment_is_dropped() -> None:
    data = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    photo().crop((0, 0, 80, 80)).save(data, "PNG", exif=exif)
    verdict = judge(data.getvalue()[:33] + BROKEN_CHUNKS["short density"] + data.getvalue()[33:], LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert "upright" in verdict.rules


@pytest.mark.parametrize("orientation", range(9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    data = io.BytesIO()
    photo().save(data, "PNG", exif=exif)
    verdict = judge(data.getvalue(), Limits(**{**vars(LIMITS), "image_px": 80}))
    assert isinstance(verdict, Accepted)
    assert isinstance(verdict.data, bytes)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue())))
    left, top = (expected.width - 80) // 2, (expected.height - 80) // 2
    assert Image.open(io.BytesIO(verdict.data)).tobytes() == expected.crop((left, top, left + 80, top + 80)).tobytes()


def test_a_decoder_runs_in_no_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with DecoderPool(LIMITS, workers=1) as pool:
        pool.start()
        (worker,) = pool._alive
        assert Path(f"/proc/{worker.process.pid}/cwd").readlink() == Path("/")
