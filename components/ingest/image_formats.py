"""Image formats, by the first bytes of a file.

Promises: pure; nothing is parsed but a few fixed bytes, so that it may run in any process. Which formats are decoded is decided in
`decoding/formats.py`.
"""

HEAD_BYTES = 64
"""How many bytes of a file are looked at."""
READ_FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF", "HEIC", "JPEG XL")
"""The formats that can be read, the last ones with libraries that may be missing."""
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS\0", "Photoshop"),
    (b"v/1\1", "OpenEXR"),
    (b"qoif", "QOI"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"gimp xcf ", "GIMP"),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "camera raw",
}
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)


def image_format(head: bytes) -> str | None:
    """Return the image format of a file that begins with `head`, or None if it is no image of a known format."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _format_of_brands(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace() and head[2:].lstrip()[:1] in b"#0123456789":
        return "PNM"
    return None


def _format_of_brands(head: bytes) -> str | None:
    """Return the format that the brands of an ISO base media file name: the major one first, then those it is compatible with."""
    size_bytes = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size_bytes, 4))]
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
