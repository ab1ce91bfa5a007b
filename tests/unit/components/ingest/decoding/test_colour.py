"""Pictures in other colour spaces: what is trained on is the picture in sRGB, whatever the file says it with."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.colours import (
    SPACES,
    SRGB,
    gamma,
    grey_profile,
    in_space,
    ink_profile,
    picture,
    rgb_profile,
    srgb_curve,
    with_cicp_tag,
)
from celebdit_testing.corpus import encoded
from PIL import Image, ImageCms

from components.ingest.candidates import Candidate
from components.ingest.decoding.images import judge
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Limits
from components.ingest.verdicts import Accepted, Rejected

PX = 64
LIMITS = Limits(image_px=PX, max_image_bytes=10**8, max_image_pixels=10**8, max_ratio=10**6)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 100, "subsampling": 0}}
P3 = SPACES["Display P3"]


def accepted(data: bytes) -> Accepted:
    verdict = judge(data, LIMITS)
    assert isinstance(verdict, Accepted), verdict
    return verdict


def stored(verdict: Accepted) -> Image.Image:
    assert isinstance(verdict.data, bytes)
    return Image.open(io.BytesIO(verdict.data))


def distance(image: Image.Image, expected: np.ndarray) -> float:
    """Mean difference in levels."""
    return float(np.abs(np.asarray(image.convert("RGB")).astype(int) - expected.astype(int)).mean())


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    data = encoded(Image.fromarray(pixels))
    return data[:33] + b"".join(chunks) + data[33:]


def chrm(space: tuple) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for point in (space.white, *space.primaries) for value in point)))


def gama(exponent: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(100_000 / exponent)))


def cicp(primaries: int, transfer: int, full_range: int = 1) -> bytes:
    return chunk(b"cICP", bytes((primaries, transfer, 0, full_range)))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"a name\0\0" + zlib.compress(profile))


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("name", SPACES)
def test_a_picture_with_a_profile_is_the_srgb_picture(name: str, kind: str) -> None:
    pixels = in_space(picture(), SPACES[name])
    verdict = accepted(encoded(Image.fromarray(pixels), kind, icc_profile=rgb_profile(SPACES[name]), **LOSSLESS[kind]))
    assert distance(Image.fromarray(pixels), picture()) > 1.5, "without a conversion it would be another picture"
    assert distance(stored(verdict), picture()) < 1
    assert "srgb" in verdict.rules
    assert "icc_profile" not in stored(verdict).info


@pytest.mark.parametrize(
    ("pixels", "chunks"),
    [
        pytest.param(in_space(picture(), SPACES["old Mac"]), [gama(1.8)], id="gAMA"),
        pytest.param(in_space(picture(), SPACES["linear"]), [gama(1.0), chrm(SRGB)], id="linear gAMA and sRGB's cHRM"),
        pytest.param(in_space(picture(), SPACES["Adobe RGB"]), [gama(563 / 256), chrm(SPACES["Adobe RGB"])], id="gAMA and cHRM"),
        pytest.param(in_space(picture(), P3), [chrm(P3)], id="cHRM alone"),
        pytest.param(in_space(picture(), P3), [cicp(12, 13)], id="cICP of Display P3"),
        pytest.param(in_space(picture(), SPACES["BT.2020"]), [cicp(9, 13)], id="cICP of BT.2020"),
        pytest.param(in_space(picture(), SPACES["linear"]), [cicp(1, 8)], id="linear cICP"),
        pytest.param((picture() / 255 * 219 + 16).round().astype(np.uint8), [cicp(1, 13, 0)], id="cICP of limited range"),
        pytest.param(in_space(picture(), P3), [cicp(12, 13), iccp(rgb_profile(SPACES["ProPhoto"]))], id="cICP before iCCP"),
        pytest.param(in_space(picture(), P3), [iccp(rgb_profile(P3)), chunk(b"sRGB", b"\0")], id="iCCP before sRGB"),
        pytest.param(in_space(picture(), P3), [iccp(rgb_profile(P3)), gama(1.0)], id="iCCP before gAMA"),
    ],
)
def test_the_chunks_of_a_png_count_in_their_order(pixels: np.ndarray, chunks: list[bytes]) -> None:
    assert distance(Image.fromarray(pixels), picture()) > 1.5, "without a conversion it would be another picture"
    verdict = accepted(png(pixels, *chunks))
    assert distance(stored(verdict), picture()) < 1
    assert verdict.rules == ("srgb",)


def lcms_srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([chunk(b"sRGB", b"\0"), gama(1.0)], id="sRGB before gAMA"),
        pytest.param([gama(2.2), chrm(SRGB)], id="what ImageMagick writes"),
        pytest.param([chunk(b"gAMA", struct.pack(">I", 45_455))], id="gAMA alone"),
        pytest.param([cicp(1, 13)], id="cICP of sRGB"),
        pytest.param([cicp(1, 1)], id="cICP of BT.709"),
        pytest.param([iccp(lcms_srgb())], id="littleCMS's profile"),
        pytest.param([iccp(rgb_profile(SRGB))], id="a profile written by formula"),
    ],
)
def test_an_image_that_says_srgb_keeps_its_bytes(chunks: list[bytes]) -> None:
    data = png(picture(), *chunks)
    assert accepted(data).data is data
    assert accepted(data).detail == ""


@pytest.mark.parametrize("profile", [None, lcms_srgb(), rgb_profile(SRGB)], ids=["none", "littleCMS's", "by formula"])
def test_a_jpeg_in_srgb_keeps_its_bytes(profile: bytes | None) -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", **({} if profile is None else {"icc_profile": profile}))
    assert accepted(data).data is data


@pytest.mark.parametrize(
    ("chunks", "detail"),
    [
        ([iccp(b"garbage")], "profile cannot be used"),
        ([iccp(rgb_profile(P3)[:300])], "profile cannot be used"),
        ([iccp(grey_profile(gamma(1.8)))], "profile is for L, not for RGB"),
        ([chunk(b"iCCP", b"name\0\0garbage")], "profile cannot be read"),
        ([chunk(b"gAMA", b"\0\0\0\0")], "gamma of 0"),
        ([cicp(99, 13)], "cICP 99/13/0 is not known"),
        ([chunk(b"cHRM", bytes(32))], "primaries cannot be used"),
    ],
)
def test_what_cannot_be_applied_leaves_the_pixels_is_said_and_is_not_stored(chunks: list[bytes], detail: str) -> None:
    """Another program could apply it, so the file itself is not kept."""
    verdict = accepted(png(picture(), *chunks))
    assert distance(stored(verdict), picture()) == 0
    assert detail in verdict.detail
    assert verdict.rules == ("converted",)
    assert not {"icc_profile", "gamma", "chromaticity"} & stored(verdict).info.keys()


def test_a_large_profile_is_applied_and_large_texts_are_passed_over() -> None:
    """Pillow refuses both as decompression bombs."""
    large = rgb_profile(P3) + bytes(3 * 2**20)
    for chunks in ([iccp(large)], [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 9)), iccp(rgb_profile(P3))]):
        verdict = accepted(png(in_space(picture(), P3), *chunks))
        assert distance(stored(verdict), picture()) < 1
        assert "read without its metadata" in verdict.detail


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
@pytest.mark.parametrize("said_by", ["cICP", "profile"])
def test_high_dynamic_range_is_rejected_by_its_name(said_by: str, transfer: int) -> None:
    profile = with_cicp_tag(rgb_profile(SPACES["BT.2020"]), transfer)
    data = png(picture(), cicp(9, transfer)) if said_by == "cICP" else encoded(Image.fromarray(picture()), "JPEG", icc_profile=profile)
    verdict = judge(data, LIMITS)
    assert isinstance(verdict, Rejected)
    assert verdict.code == "high_dynamic_range"
    assert {16: "PQ", 18: "HLG"}[transfer] in verdict.detail


def press(inks: np.ndarray) -> np.ndarray:
    """The colour of inks on yellowish paper, each darker than naive arithmetic says."""
    cyan, magenta, yellow, black = np.moveaxis(inks**0.8, -1, 0)
    light = np.stack([1 - 0.9 * cyan, (1 - 0.85 * magenta) * (1 - 0.2 * cyan), (1 - 0.8 * yellow) * (1 - 0.3 * magenta)], axis=-1)
    return light * (1 - 0.85 * black[..., None]) * np.array([0.97, 0.96, 0.9])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_become_the_colours_of_their_press(kind: str) -> None:
    """Relative colorimetric: paper is white, and the darkest black is black."""
    inks = np.asarray(Image.fromarray(picture()).convert("CMYK")).copy()
    inks[..., 3] = inks[..., :3].min(axis=-1) // 2
    profile = ink_profile(press)
    data = encoded(Image.fromarray(inks, mode="CMYK"), kind, icc_profile=profile, **LOSSLESS[kind])
    verdict = accepted(data)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "CMYK", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    )
    expected = np.asarray(ImageCms.applyTransform(Image.open(io.BytesIO(data)), transform))
    assert distance(Image.open(io.BytesIO(data)), expected) > 5, "without the profile it would be another picture"
    assert distance(stored(verdict), expected) < 1
    assert verdict.rules == ("converted", "srgb")


def test_inks_without_a_profile_become_what_browsers_show() -> None:
    inks = Image.new("CMYK", (PX, PX), (255, 51, 0, 51))
    verdict = accepted(encoded(inks, "TIFF"))
    assert stored(verdict).getpixel((5, 5)) == (0, 163, 204)
    assert verdict.rules == ("converted",)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greys_with_a_profile_are_converted(mode: str) -> None:
    greys = Image.fromarray(np.linspace(0, 255, PX * PX).reshape(PX, PX).astype(np.uint8)).convert(mode)
    verdict = accepted(encoded(greys, "PNG", icc_profile=grey_profile(gamma(1.0))))
    linear = np.asarray(greys.convert("L")) / 255
    expected = np.interp(linear, srgb_curve(np.linspace(0, 1, 4096)), np.linspace(0, 255, 4096))
    assert distance(stored(verdict), np.repeat(expected[..., None], 3, axis=-1).round()) < 1
    assert verdict.rules == ("converted", "srgb")


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_the_colours_below_transparency_and_in_palettes_are_converted(mode: str) -> None:
    image = Image.fromarray(in_space(picture(), P3))
    image = image.quantize(256) if mode == "P" else image.convert(mode)
    shown = np.asarray(image.convert("RGB"))
    verdict = accepted(encoded(image, "PNG", icc_profile=rgb_profile(P3)))
    converted = np.asarray(stored(accepted(encoded(Image.fromarray(shown), "PNG", icc_profile=rgb_profile(P3)))))
    assert distance(stored(verdict), converted) == 0
    assert distance(stored(verdict), shown) > 1.5


def test_a_picture_is_converted_before_it_is_made_smaller() -> None:
    large = picture(3 * PX)
    turned = encoded(Image.fromarray(in_space(large, SPACES["linear"])), "PNG", icc_profile=rgb_profile(SPACES["linear"]))
    assert distance(stored(accepted(turned)), np.asarray(stored(accepted(encoded(Image.fromarray(large)))))) < 1


def test_a_cameras_adobe_rgb_without_a_profile_is_converted() -> None:
    """DCF 2.0: ColorSpace is "uncalibrated" and the interoperability index R03."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    pixels = Image.fromarray(in_space(picture(), SPACES["Adobe RGB"]))
    verdict = accepted(encoded(pixels, "JPEG", exif=exif, **LOSSLESS["JPEG"]))
    assert distance(stored(verdict), picture()) < 1
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}
    plain = encoded(pixels, "JPEG", exif=exif, **LOSSLESS["JPEG"])
    assert accepted(plain).data is plain


def test_a_profile_inside_a_bmp_is_applied() -> None:
    pixels, profile = in_space(picture(), P3), rgb_profile(P3)
    plain = encoded(Image.fromarray(pixels), "BMP")
    rows = plain[54:]
    header = struct.pack("<I", 124) + plain[18:54] + bytes(16) + b"DEBM" + bytes(48)
    header += struct.pack("<IIII", 4, 124 + len(rows), len(profile), 0)
    data = b"BM" + struct.pack("<IHHI", 14 + 124 + len(rows) + len(profile), 0, 0, 14 + 124) + header + rows + profile
    assert distance(Image.open(io.BytesIO(data)), pixels) == 0, "a BMP that Pillow reads"
    assert distance(stored(accepted(data)), picture()) < 1


def test_confined_workers_convert_too_and_with_little_memory() -> None:
    """Ink profiles need tables; a worker starts with a memory limit that may be too small for them."""
    cases = {"press": encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", icc_profile=ink_profile(press, steps=17), quality=95)}
    cases |= {name: encoded(Image.fromarray(picture()), "PNG", icc_profile=rgb_profile(space)) for name, space in SPACES.items()}
    cases["broken"] = png(picture(), iccp(b"garbage"))
    with DecoderPool(LIMITS, workers=1) as pool:
        judged = {candidate.name: verdict for candidate, verdict in pool.judge(Candidate(*case) for case in cases.items())}
    assert judged == {name: judge(data, LIMITS) for name, data in cases.items()}
    assert [name for name, verdict in judged.items() if "srgb" not in verdict.rules] == ["broken"]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_newer_formats_with_a_profile_are_converted(kind: str) -> None:
    options = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "HEIF": {"quality": 100, "chroma": 444}}[kind]
    verdict = accepted(encoded(Image.fromarray(in_space(picture(), P3)), kind, icc_profile=rgb_profile(P3), **options))
    assert "srgb" in verdict.rules
    assert distance(stored(verdict), picture()) < 1


@pytest.mark.parametrize(("code_points", "expected"), [((12, 13), "srgb"), ((1, 13), "converted"), ((2, 2), "converted"), ((9, 16), "PQ")])
def test_the_code_points_of_an_avif_count_without_a_profile(code_points: tuple[int, int], expected: str) -> None:
    data = encoded(Image.fromarray(in_space(picture(), P3)), "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    verdict = judge(data[:at] + struct.pack(">HH", *code_points) + data[at + 4 :], LIMITS)
    if isinstance(verdict, Rejected):
        assert (verdict.code, expected) == ("high_dynamic_range", "PQ")
        return
    assert verdict.rules == (expected,)
    assert verdict.detail == ""
    assert (distance(stored(verdict), picture()) < 1) == (expected == "srgb")


def with_gif_extension(data: bytes, name: bytes, content: bytes) -> bytes:
    """A GIF with an application extension behind its colour table."""
    at = 13 + (3 << (data[10] & 7) + 1)
    blocks = b"".join(bytes([len(content[i : i + 255])]) + content[i : i + 255] for i in range(0, len(content), 255))
    return data[:at] + b"\x21\xff\x0b" + name + blocks + b"\0" + data[at:]


def test_the_profile_of_a_gif_is_applied() -> None:
    image = Image.fromarray(in_space(picture(), P3)).quantize(256)
    plain, mac = encoded(image, "GIF"), rgb_profile(SPACES["old Mac"])
    verdict = accepted(with_gif_extension(with_gif_extension(plain, b"ICCRGBG1012", rgb_profile(P3)), b"XMP DataXMP", mac))
    assert verdict.rules == ("converted", "srgb")
    assert distance(stored(verdict), np.asarray(stored(accepted(encoded(image, icc_profile=rgb_profile(P3)))))) == 0
    assert "srgb" not in accepted(with_gif_extension(plain, b"ICCRGBG1999", mac)).rules
    damaged = accepted(with_gif_extension(plain, b"ICCRGBG1012", mac[:100]))
    assert "profile cannot be used" in damaged.detail
    for end in range(10, 60):  # cut anywhere in its begin, it is judged like any cut file
        assert isinstance(judge(with_gif_extension(plain, b"ICCRGBG1012", mac)[:end], LIMITS), Rejected)


@pytest.mark.parametrize("reconstructed", [True, False], ids=["as its JPEG", "by its own pixels"])
def test_the_profile_of_a_jpeg_xl_is_applied(tmp_path: Path, reconstructed: bool) -> None:
    path = tmp_path / "p3.jpg"
    Image.fromarray(in_space(picture(), P3)).save(path, icc_profile=rgb_profile(P3), quality=100, subsampling=0)
    data = encoded(Image.open(path), "JXL", lossless_jpeg=True)
    if not reconstructed:
        at = data.index(b"jbrd") - 4
        data = data[:at] + data[at + int.from_bytes(data[at : at + 4], "big") :]
    verdict = accepted(data)
    assert (verdict.source_format, "srgb" in verdict.rules) == ("jxl", True)
    assert distance(stored(verdict), picture()) < 1
