"""JPEGs that are judged without Pillow: no verdict is another for it."""

import io
import random
from collections.abc import Callable, Iterator

import pytest
from celebdit_testing.corpus import encoded, face
from PIL import Image, ImageCms

from components.ingest.decoding import images
from components.ingest.decoding.images import judge
from components.ingest.decoding.plain_jpeg import plain_jpeg_size
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Rejected

PX = 64
BOUNDS = Limits(image_px=PX, max_image_bytes=10**6, max_image_pixels=10**6, max_ratio=200)
FACE = face(7, PX)


def jpeg(image: Image.Image = FACE, **options: object) -> bytes:
    return encoded(image, "JPEG", **{"quality": 90, **options})


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return jpeg(exif=exif)


def of_another_space() -> bytes:
    return jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def several() -> bytes:
    buffer = io.BytesIO()
    FACE.save(buffer, "MPO", save_all=True, append_images=[FACE])
    return buffer.getvalue()


PLAIN: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "half the colours": lambda: jpeg(subsampling=2),
    "progressive": lambda: jpeg(progressive=True),
    "restart markers": lambda: jpeg(restart_marker_rows=1),
    "optimised": lambda: jpeg(optimize=True),
    "another size": lambda: jpeg(face(7, 2 * PX)),
    "no JFIF": lambda: jpeg()[:2] + jpeg()[20:],
    "trailing bytes": lambda: jpeg() + b"more",
}
OTHERS: dict[str, Callable[[], bytes]] = {
    "a comment": lambda: jpeg(comment=b"hello"),
    "turned": turned,
    "a profile": of_another_space,
    "several images": several,
    "grey": lambda: jpeg(FACE.convert("L")),
    "inks": lambda: jpeg(FACE.convert("CMYK")),
    "red, green and blue": lambda: jpeg(keep_rgb=True),
    "PNG": lambda: encoded(FACE),
    "tables of 16 bits": lambda: jpeg().replace(b"\xff\xdb\x00\x43\x00", b"\xff\xdb\x00\x43\x10"),
    "cut in its header": lambda: jpeg()[:170],
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_jpeg_of_tables_and_pixels_alone_is_plain(make: Callable[[], bytes]) -> None:
    assert plain_jpeg_size(make()) == Image.open(io.BytesIO(make())).size


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_anything_else_is_left_to_pillow(make: Callable[[], bytes]) -> None:
    assert plain_jpeg_size(make()) is None


def damaged(kinds: list[bytes]) -> Iterator[bytes]:
    """Yield each of `kinds`, then with changed, missing or additional bytes, half of them in the header."""
    yield from kinds
    chance = random.Random(5)
    for number in range(400):
        data = bytearray(kinds[number % len(kinds)])
        at = chance.randrange(len(data) if number % 2 else min(700, len(data)))
        change = chance.randrange(3)
        if change == 0:
            data[at] = chance.randrange(256)
        elif change == 1:
            del data[at : at + chance.randrange(1, 9)]
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        yield bytes(data)


def test_verdicts_are_those_of_pillow_whatever_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = list(damaged([make() for make in (PLAIN | OTHERS).values() if make()]))
    plain = [plain_jpeg_size(data) == (PX, PX) for data in candidates]
    verdicts = [judge(data, BOUNDS) for data in candidates]
    monkeypatch.setattr(images, "plain_jpeg_size", lambda data: None)
    assert verdicts == [judge(data, BOUNDS) for data in candidates]
    of_plain = [verdict for verdict, is_plain in zip(verdicts, plain, strict=True) if is_plain]
    assert sum(isinstance(verdict, Accepted) for verdict in of_plain) > 50
    assert any(isinstance(verdict, Rejected) for verdict in of_plain), "one that is damaged in its pixels"


def test_a_limit_holds_for_a_plain_jpeg_too() -> None:
    for field, code in (("max_image_bytes", "too_many_bytes"), ("max_image_pixels", "too_many_pixels")):
        verdict = judge(jpeg(), Limits(**{**vars(BOUNDS), field: 1000}))
        assert isinstance(verdict, Rejected)
        assert verdict.code == code
