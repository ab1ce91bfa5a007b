"""A hostile corpus: one file of every kind that ingest must have a verdict on, made afresh, and archives that mean harm."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 - so that Pillow writes JPEG XL
from PIL import Image

from components.ingest.sources.synthetic import draw_face, encode_face

pillow_heif.register_heif_opener()
PX = 32


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def face(index: int, px: int = PX) -> Image.Image:
    return draw_face(7, index, px)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _frames(kind: str) -> bytes:
    return encoded(face(0), kind, save_all=True, append_images=[face(1), face(2)])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG written by hand, because no library writes what a liar writes."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _sixteen_bit_rgb() -> bytes:
    values = np.arange(PX * PX * 3, dtype=">u2").reshape(PX, PX * 3)
    return _png(PX, PX, b"".join(b"\0" + row.tobytes() for row in values), depth=16)


def _text_bomb() -> bytes:
    """A small image whose comment unpacks to 64 MB."""
    return _png(PX, PX, bytes(PX * (1 + 3 * PX)), extra=_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 9)))


def _flipped_png() -> bytes:
    data = bytearray(encoded(face(3)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def _icc_cmyk() -> bytes:
    return encoded(face(6).convert("CMYK"), "JPEG", quality=95)


def _photo(index: int, kind: str) -> bytes:
    return encoded(face(index, 2 * PX), kind)


def many_scans(count: int) -> bytes:
    """A JPEG whose last scan is repeated: each one makes a decoder visit all pixels again."""
    data = io.BytesIO()
    Image.new("L", (3000, 3000)).save(data, "JPEG", progressive=True)
    last = data.getvalue().rindex(b"\xff\xda")
    return data.getvalue()[:last] + data.getvalue()[last:-2] * count + b"\xff\xd9"


def bmp_without_alpha(image: Image.Image) -> bytes:
    """A 32-bit BMP as Windows writes it from a screen: with masks for four channels, the fourth of them zero everywhere."""
    rows = image.convert("RGBA").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    rows.putalpha(0)
    pixels = rows.tobytes("raw", "BGRA")
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<I2i2H6I", 108, *image.size, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks + b"Win " + bytes(48)
    return b"BM" + struct.pack("<I2HI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def ten_bit_avif() -> bytes:
    """An AVIF that claims ten bits per channel, with the pixels of one with eight."""
    data = bytearray(encoded(face(136, 2 * PX), "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x40
    return bytes(data)


def _framed_nothing() -> Image.Image:
    """A wide image whose left end alone can be seen."""
    image = Image.new("RGBA", (4 * PX, PX), (9, 9, 9, 0))
    image.paste((200, 100, 50, 255), (0, 0, PX // 2, PX))
    return image


IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "plain.jpg": (lambda: encode_face(7, 100, PX), "as_is"),
    "plain.png": (lambda: encoded(face(101)), "as_is"),
    "wrong-suffix.png": (lambda: encode_face(7, 102, PX), "as_is"),
    "larger.jpg": (lambda: encode_face(7, 103, 2 * PX), "resized"),
    "wide.png": (lambda: encoded(face(104, 4 * PX).crop((0, 20, 4 * PX, 4 * PX))), "cropped+resized"),
    "wide-of-target-height.png": (lambda: encoded(face(105, 2 * PX).crop((0, 0, 2 * PX, PX))), "cropped"),
    "rotated.jpg": (lambda: encoded(face(106), "JPEG", quality=95, exif=_exif(6)), "upright"),
    "mirrored.jpg": (lambda: encoded(face(107), "JPEG", quality=95, exif=_exif(2)), "upright"),
    "nonsense-orientation.jpg": (lambda: encoded(face(108), "JPEG", quality=95, exif=_exif(77)), "as_is"),
    "grey.jpg": (lambda: encoded(face(109).convert("L"), "JPEG", quality=95), "converted"),
    "grey-alpha.png": (lambda: encoded(face(110).convert("LA")), "converted"),
    "alpha.png": (lambda: encoded(face(111).convert("RGBA")), "converted"),
    "palette.png": (lambda: encoded(face(112).convert("P")), "converted"),
    "palette-transparent.png": (lambda: encoded(face(113).convert("P"), transparency=0), "converted"),
    "one-bit.png": (lambda: encoded(face(114).convert("1")), "converted"),
    "cmyk.jpg": (_icc_cmyk, "converted"),
    "still.gif": (lambda: encoded(face(115), "GIF"), "converted"),
    "still.webp": (lambda: encoded(face(116), "WEBP", lossless=True), "converted"),
    "image.bmp": (lambda: encoded(face(117), "BMP"), "converted"),
    "image.tiff": (lambda: encoded(face(118), "TIFF"), "converted"),
    "photo.heic": (lambda: _photo(123, "HEIF"), "resized"),
    "photo.avif": (lambda: _photo(124, "AVIF"), "resized"),
    "photo.jxl": (lambda: _photo(125, "JXL"), "resized"),
    "download (1).jfif": (lambda: encode_face(7, 126, PX), "as_is"),
    "no-suffix": (lambda: encode_face(7, 127, PX), "as_is"),
    "sent-as.HEIC": (lambda: encode_face(7, 128, PX), "as_is"),
    "unused-alpha.bmp": (lambda: bmp_without_alpha(face(129)), "converted"),
    "empty.jpg": (lambda: b"", "not_an_image"),
    "text.jpg": (lambda: b"hello, I am a text\n" * 40, "not_an_image"),
    "svg.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    "ghostscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "not_an_image"),
    "half.jpg": (lambda: encode_face(7, 119, 4 * PX)[:-900], "truncated"),
    "half.png": (lambda: encoded(face(120))[:-400], "truncated"),
    "header-only.png": (lambda: encoded(face(121))[:33], "not_an_image"),
    "flipped.png": (_flipped_png, "truncated"),
    "sixteen-bit-grey.png": (lambda: encoded(Image.new("I;16", (PX, PX))), "sixteen_bit"),
    "sixteen-bit-rgb.png": (_sixteen_bit_rgb, "sixteen_bit"),
    "float.tiff": (lambda: encoded(Image.new("F", (PX, PX)), "TIFF"), "sixteen_bit"),
    "ten-bit.avif": (ten_bit_avif, "sixteen_bit"),
    "half.heic": (lambda: _photo(130, "HEIF")[:-200], "truncated"),
    "half.jxl": (lambda: _photo(131, "JXL")[:-200], "truncated"),
    "half.avif": (lambda: _photo(132, "AVIF")[:-200], "truncated"),
    "invisible.png": (lambda: encoded(Image.new("RGBA", (PX, PX), (9, 9, 9, 0))), "transparent"),
    "invisible-centre.webp": (lambda: encoded(_framed_nothing(), "WEBP", lossless=True), "transparent"),
    "scan.jp2": (lambda: encoded(face(133), "JPEG2000"), "unsupported_format"),
    "grey.pgm": (lambda: encoded(face(134).convert("L"), "PPM"), "unsupported_format"),
    "animated.gif": (lambda: _frames("GIF"), "animated"),
    "animated.png": (lambda: _frames("PNG"), "animated"),
    "animated.webp": (lambda: _frames("WEBP"), "animated"),
    "pages.tiff": (lambda: _frames("TIFF"), "animated"),
    "tiny.png": (lambda: encoded(face(122).resize((PX - 1, PX))), "too_small"),
    "sliver.png": (lambda: encoded(Image.new("RGB", (20_000, 1))), "too_small"),
    "bomb.png": (lambda: encoded(Image.new("1", (9000, 9000))), "decompression_bomb"),
    "claims-much.png": (lambda: _png(60_000, 60_000, bytes(100)), "decompression_bomb"),
    "bomb-in-comment.png": (_text_bomb, "converted"),
    "heavy.bmp": (lambda: encoded(Image.new("RGB", (700, 700)), "BMP"), "too_many_bytes"),
    "copy-of-plain.jpg": (lambda: encode_face(7, 100, PX), "duplicate"),
    "notes.txt": (lambda: b"read me", "ignored"),
    "LICENCE": (lambda: b"BM, a text without a suffix that begins like an image", "ignored"),
    "__MACOSX/._plain.jpg": (lambda: b"junk", "ignored"),
}
"""Name -> (how to make it, its verdict) with `image_px` 32 and `max_image_bytes` one million."""

LIMITS = {"image_px": PX, "max_image_bytes": 10**6, "max_image_pixels": 10**6}


def write_hostile_zip(path: Path) -> dict[str, str]:
    """Write a zip with every kind of entry that is refused unread, and good ones between; return name -> verdict."""
    bad = encode_face(8, 0, PX)
    expected = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, verdict: str, data: bytes = bad, mode: int | None = None) -> None:
            entry = zipfile.ZipInfo(name, date_time=(2000, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            if mode is not None:
                entry.create_system, entry.external_attr = 3, mode << 16
            archive.writestr(entry, data)
            expected[name] = verdict

        for index in range(3):
            add(f"good/{index}.jpg", "as_is", encode_face(8, 10 + index, PX))
        add("../escape.jpg", "unsafe_name")
        add("good/../../escape.jpg", "unsafe_name")
        add("/tmp/absolute.jpg", "unsafe_name")
        add("C:\\Windows\\drive.jpg", "unsafe_name")
        add("..\\backslash.jpg", "unsafe_name")
        add("line\nbreak.jpg", "unsafe_name")
        add("link.jpg", "link", b"/etc/passwd", stat.S_IFLNK | 0o777)
        add("device.jpg", "special_file", b"", stat.S_IFCHR | 0o666)
        add("pipe.jpg", "special_file", b"", stat.S_IFIFO | 0o666)
        add("inner.zip", "nested_archive", b"PK\3\4")
        add("inner.tar.gz", "nested_archive", b"\x1f\x8b")
        add("zeros.bmp", "compressed_too_far", bytes(4 * 2**20))
        add("größe.jpg", "as_is", encode_face(8, 20, PX))
        add("encrypted.jpg", "encrypted", encode_face(8, 21, PX))
        add("damaged.jpg", "damaged_entry", encode_face(8, 22, PX))
        add("readme.md", "ignored", b"# hello")
    _mark_encrypted(path, b"encrypted.jpg")
    _break_content(path, "damaged.jpg")
    return expected


def _mark_encrypted(path: Path, name: bytes) -> None:
    """Set the flag that says an entry needs a password, in its header and in the directory."""
    data = bytearray(path.read_bytes())
    for magic, flags_at, name_at in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        at = data.find(magic)
        while at >= 0 and data[at + name_at : at + name_at + len(name)] != name:
            at = data.find(magic, at + 4)
        data[at + flags_at] |= 1
    path.write_bytes(data)


def _break_content(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len(name) + entry.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


def write_hostile_tar(path: Path, mode: str = "w:gz") -> dict[str, str]:
    """Write a tar with every kind of entry that is refused unread, and good ones between; return name -> verdict."""
    expected = {}
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:  # type: ignore[call-overload]

        def add(name: str, verdict: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            header = tarfile.TarInfo(name)
            header.type, header.linkname, header.size = kind, target, len(data)
            archive.addfile(header, io.BytesIO(data))
            expected[name] = verdict

        for index in range(3):
            add(f"good/{index}.jpg", "as_is", encode_face(8, 10 + index, PX))
        add("../escape.jpg", "unsafe_name", encode_face(8, 0, PX))
        add("/tmp/absolute.jpg", "unsafe_name", encode_face(8, 0, PX))
        add("C:/drive.jpg", "unsafe_name", encode_face(8, 0, PX))
        add("symbolic.jpg", "link", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add("hard.jpg", "link", kind=tarfile.LNKTYPE, target="good/0.jpg")
        add("character.jpg", "special_file", kind=tarfile.CHRTYPE)
        add("block.jpg", "special_file", kind=tarfile.BLKTYPE)
        add("pipe.jpg", "special_file", kind=tarfile.FIFOTYPE)
        add("inner.zip", "nested_archive", b"PK\3\4")
        add("not-utf8-\udcff.jpg", "as_is", encode_face(8, 20, PX))
        add("n" * 300 + ".jpg", "as_is", encode_face(8, 21, PX))
        add("notes.txt", "ignored", b"hello")
    return expected
