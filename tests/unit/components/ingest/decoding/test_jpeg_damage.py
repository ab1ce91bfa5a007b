"""JPEGs damaged in the middle, which Pillow decodes without an error; and good JPEGs of every kind, which are not refused for it."""

import io
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from celebdit_testing.corpus import encoded, face
from PIL import Image

from components.ingest.candidates import Candidate
from components.ingest.decoding.images import judge
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Rejected

PX = 128
LIMITS = Limits(image_px=PX, max_image_bytes=10**8, max_image_pixels=10**8, max_ratio=10**6)
SMALLER = Limits(**{**vars(LIMITS), "image_px": 64})
PICTURE = Image.blend(face(5, PX), Image.effect_noise((PX, PX), 60).convert("RGB"), 0.15)


def jpeg(image: Image.Image = PICTURE, **options: object) -> bytes:
    return encoded(image, "JPEG", **{"quality": 92, **options})


ENCODINGS: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "half the colours": lambda: jpeg(subsampling=2),
    "progressive": lambda: jpeg(progressive=True),
    "restart markers": lambda: jpeg(restart_marker_rows=1),
    "grey": lambda: jpeg(PICTURE.convert("L")),
    "inks": lambda: jpeg(PICTURE.convert("CMYK")),
    "red, green and blue": lambda: jpeg(keep_rgb=True),
}
PAGE = b"<html><head><title>503 Service Unavailable</title></head><body>try again later</body></html>\r\n" * 6


def scan_of(data: bytes) -> int:
    """Where the coded pixels begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "lost": lambda data, at: data[:at] + data[at + 300 :],
    "zeroed": lambda data, at: data[:at] + bytes(300) + data[at + 300 :],
    "page inside": lambda data, at: data[:at] + PAGE + data[at:],
    "page instead": lambda data, at: data[:at] + PAGE[:300] + data[at + 300 :],
    "repeated": lambda data, at: data[:at] + data[at - 300 :],
    "cut and closed": lambda data, at: data[:at] + b"\xff\xd9",
}


def is_found(data: bytes, limits: Limits) -> bool:
    verdict = judge(data, limits)
    if isinstance(verdict, Rejected):
        assert verdict.code == "truncated"
        assert verdict.detail
    return isinstance(verdict, Rejected)


@pytest.mark.parametrize("limits", [LIMITS, SMALLER], ids=["of the target size", "larger"])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damage_in_the_middle_is_found(encoding: str, kind: str, limits: Limits) -> None:
    """A tenth and more of it causes no warning: the code finds its feet again, and the image is filled by chance."""
    whole = ENCODINGS[encoding]()
    places = random.Random(7)
    damaged = [DAMAGE[kind](whole, places.randrange(scan_of(whole) + 300, len(whole) - 400)) for _ in range(20)]
    for data in damaged[:3]:
        Image.open(io.BytesIO(data)).load()  # Pillow says nothing
    found = sum(is_found(data, limits) for data in damaged)
    assert found >= (20 if kind == "cut and closed" else 13), found


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def after_begin(data: bytes, *inserted: bytes) -> bytes:
    return data[:2] + b"".join(inserted) + data[2:]


GOOD: dict[str, Callable[[], bytes]] = {
    **{name: make for name, make in ENCODINGS.items() if name not in ("grey", "inks")},
    "all colours": lambda: jpeg(subsampling=0),
    "half the colours sideways": lambda: jpeg(subsampling=1),
    "restart markers after each block": lambda: jpeg(restart_marker_blocks=1),
    "progressive with restart markers": lambda: jpeg(progressive=True, restart_marker_rows=2),
    "own tables": lambda: jpeg(optimize=True),
    "bad quality": lambda: jpeg(quality=3),
    "text behind the end": lambda: jpeg() + b"<!-- from a camera -->" * 50,
    "zeros behind the end": lambda: jpeg() + bytes(4096),
    "another JPEG behind the end": lambda: jpeg() + jpeg(PICTURE.resize((32, 32))),
    "zeros before the end": lambda: jpeg()[:-2] + bytes(37) + b"\xff\xd9",
    "padding before the end": lambda: jpeg()[:-2] + b"\xff" * 37 + b"\xff\xd9",
    "padding between segments": lambda: after_begin(jpeg(), b"\xff" * 9),
    "zeros between segments": lambda: after_begin(jpeg(), segment(0xFE, b"by a camera"), bytes(5)),
    "an unknown version of JFIF": lambda: jpeg()[:11] + b"\x05" + jpeg()[12:],
    "an unknown colour transform of Adobe's": lambda: after_begin(jpeg(), segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09")),
    "a comment that looks like an end": lambda: jpeg(comment=b"\xff\xd9\xff\xda" * 10),
    "a thumbnail in its EXIF data": lambda: after_begin(jpeg(), segment(0xE1, b"Exif\0\0" + jpeg(PICTURE.resize((32, 32))))),
    "parameters of a progressive scan": lambda: jpeg()[: scan_of(jpeg()) - 3] + b"\0\0\0" + jpeg()[scan_of(jpeg()) :],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_keeps_its_bytes(name: str) -> None:
    data = GOOD[name]()
    Image.open(io.BytesIO(data)).load()
    verdict = judge(data, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    assert verdict.data is data
    assert isinstance(judge(data, SMALLER), Accepted)


@pytest.mark.parametrize("name", ["zeros before the end", "an unknown version of JFIF", "zeros between segments"])
def test_a_harmless_warning_does_not_hide_damage(name: str) -> None:
    data = GOOD[name]()
    assert is_found(data[: len(data) // 2] + data[-45:], LIMITS)


def test_the_photographs_of_a_stereo_camera_are_good() -> None:
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[face(6, PX)])
    assert isinstance(judge(data, LIMITS), Accepted)
    assert is_found(data[: len(data) // 4] + b"\xff\xd9", LIMITS)


def test_the_reduced_image_is_the_one_that_pillow_makes() -> None:
    """The colour statistics of a dataset, and what looks alike in it, do not depend on the library."""
    for px, scale in ((32, 1), (64, 2), (100, 2), (128, 4), (256, 8), (270, 8), (512, 16)):
        data = jpeg(face(9, px))
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (px // min(scale, 8), px // min(scale, 8)))
        verdict = judge(data, Limits(**{**vars(LIMITS), "image_px": px}))
        assert isinstance(verdict, Accepted)
        assert verdict.small == (image.reduce(scale // 8) if scale > 8 else image).tobytes()


def test_confined_workers_find_damage_and_go_on() -> None:
    whole = jpeg()
    names = [f"{number}-{kind}" for number in range(12) for kind in ("good", "bad")]
    with DecoderPool(LIMITS, workers=1) as pool:
        files = (
            Candidate(name, whole if "good" in name else DAMAGE["cut and closed"](whole, 2000 + 50 * n)) for n, name in enumerate(names)
        )
        judged = {candidate.name: isinstance(verdict, Accepted) for candidate, verdict in pool.judge(files)}
    assert judged == {name: "good" in name for name in names}


CJPEG = [
    *(["-sample", factors] for factors in ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "3x1", "4x1,1x1,2x1")),
    ["-arithmetic"],
    ["-arithmetic", "-progressive"],
    ["-restart", "3B"],
    ["-rgb"],
    ["-grayscale"],
    ["-optimize", "-dct", "float", "-smooth", "20"],
    ["-progressive", "-sample", "2x2", "-restart", "1"],
]
CONVERT = [
    ["-sampling-factor", "4:1:1"],
    ["-sampling-factor", "4:1:0"],
    ["-interlace", "JPEG"],
    ["-colorspace", "CMYK"],
    ["-colorspace", "Gray"],
    ["-define", "jpeg:arithmetic-coding=on"],
    ["-define", "jpeg:extent=6kb"],
]


_UNCHECKED = {"4x2", "2x4", "3x1", "4x1,1x1,2x1", "4:1:0", "-arithmetic"}
"""Proportions of colours that the library which warns does not read; and arithmetic coding may leave out zeros at its end."""


def made_by(program: str, options: list[str], source: Path) -> bytes:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install libjpeg-turbo-progs imagemagick libimage-exiftool-perl)")
    command = {
        "cjpeg": ["cjpeg", *options, str(source.with_suffix(".ppm"))],
        "jpegtran": ["jpegtran", *options, str(source.with_suffix(".jpg"))],
        "convert": ["convert", str(source.with_suffix(".ppm")), *options, "jpeg:-"],
        "exiftool": ["exiftool", *options, "-o", "-", str(source.with_suffix(".jpg"))],
    }[program]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as name.ppm and name.jpg."""
    path = tmp_path_factory.mktemp("pictures") / "picture.ppm"
    PICTURE.save(path)
    path.with_suffix(".jpg").write_bytes(jpeg())
    return path


@pytest.mark.parametrize(
    ("program", "options"),
    [
        *(pytest.param("cjpeg", options, id=f"cjpeg {' '.join(options)}") for options in CJPEG),
        *(pytest.param("convert", options, id=f"convert {' '.join(options)}") for options in CONVERT),
        pytest.param("jpegtran", ["-rotate", "90", "-trim"], id="jpegtran rotated"),
        pytest.param("jpegtran", ["-crop", "96x96+8+8", "-copy", "all"], id="jpegtran cropped"),
        pytest.param("exiftool", ["-Orientation=Horizontal (normal)", "-Comment=a face", "-GPSAltitude=5"], id="exiftool"),
    ],
)
def test_the_files_of_other_programs_are_good(program: str, options: list[str], source: Path) -> None:
    data = made_by(program, options, source)
    assert isinstance(judge(data, SMALLER), Accepted)
    cut = data[: (scan_of(data) + len(data)) // 2] + b"\xff\xd9"
    assert is_found(cut, SMALLER) == (not _UNCHECKED & {*options})
