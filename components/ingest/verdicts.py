"""Verdicts on candidates: accepted, with the rules that were applied, or rejected, with a code.

Plain data, no decoding. A code is part of the dataset's table and of error messages, so it is never renamed.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Rule = Literal["as_is", "upright", "converted", "srgb", "cropped", "resized"]
Code = Literal[
    "ignored",
    "unsafe_name",
    "duplicate_name",
    "link",
    "special_file",
    "nested_archive",
    "unsupported_format",
    "encrypted",
    "damaged_entry",
    "unreadable",
    "compressed_too_far",
    "too_many_bytes",
    "not_an_image",
    "truncated",
    "too_many_pixels",
    "decompression_bomb",
    "too_small",
    "animated",
    "transparent",
    "sixteen_bit",
    "high_dynamic_range",
    "out_of_memory",
    "too_slow",
    "decoder_died",
    "duplicate",
    "near_duplicate",
]

PIXEL_RULES = 4
"""Raised when an image gets other pixels or another verdict than before, so that finished ingests are done again."""
EXTRA = "make extras"
"""What installs the libraries of HEIC and JPEG XL; a verdict whose detail names it is on a file that needs them."""
RULES: dict[Rule, str] = {
    "as_is": "kept byte for byte",
    "upright": "rotated by its EXIF orientation",
    "converted": "converted to RGB",
    "srgb": "converted to sRGB from the colour space that its metadata name",
    "cropped": "centre-cropped to a square",
    "resized": "resized once, antialiased",
}
MEANINGS: dict[Code, str] = {
    "ignored": "no image by its name or its content, hidden, or in a folder that a program left (not counted as rejected)",
    "unsafe_name": "its name points outside the archive, or holds control characters",
    "duplicate_name": "the archive has an earlier entry of this name",
    "link": "a symbolic or hard link that is not followed",
    "special_file": "a device, pipe or sparse file",
    "nested_archive": "an archive inside the source; it is not opened",
    "unsupported_format": "a format that is not read here: `make extras` for HEIC and JPEG XL, convert others to JPEG or PNG",
    "encrypted": "needs a password",
    "damaged_entry": "the archive's checksum of these bytes does not match",
    "unreadable": "the file cannot be read",
    "compressed_too_far": "unpacks to many times its size",
    "too_many_bytes": "larger than data.max_image_bytes",
    "not_an_image": "not one of the supported image formats",
    "truncated": "the image ends early or is corrupt",
    "too_many_pixels": "more pixels than data.max_image_pixels",
    "decompression_bomb": "few bytes that decode to a huge image",
    "too_small": "a side is shorter than data.image_px",
    "animated": "more than one frame",
    "transparent": "every pixel of its centre square is transparent",
    "sixteen_bit": "more than 8 bits per channel",
    "high_dynamic_range": "encoded by PQ or HLG: convert it to sRGB",
    "out_of_memory": "decoding takes more memory than a worker may use",
    "too_slow": "decoding takes more than 10 seconds of processor time",
    "decoder_died": "the decoding process crashed on it",
    "duplicate": "the same bytes as an earlier image",
    "near_duplicate": "looks like another image that is at least as large (data.near_duplicate_bits)",
}


class Extent(NamedTuple):
    """Bytes of the source's archive that are stored unchanged."""

    at: int
    size_bytes: int


class Accepted(NamedTuple):
    """An image that enters the dataset: the bytes to store, or their extent in the archive, and what was measured.

    `small` holds the RGB pixels of the reduced image (`colour_statistics.reduction_factor`). `perceptual_hash` is
    None for an image that is kept byte for byte, unless it is requested.
    """

    data: bytes | Extent
    extension: Literal["jpg", "png"]
    sha256: str
    rules: tuple[Rule, ...]
    source_px: tuple[int, int]
    source_format: str
    small: bytes
    perceptual_hash: int | None = None
    detail: str = ""
    """What of its metadata could not be used."""

    @property
    def key(self) -> str:
        """The image's name in the dataset, a function of its content."""
        return self.sha256[:20]


@dataclass(frozen=True)
class Rejected:
    """A candidate that is left out, and why; `thumbnail` is a small JPEG of it, empty where none could be made."""

    code: Code
    detail: str
    thumbnail: bytes = b""


NO_IMAGE = Rejected("ignored", "no image by its name or its content")
Verdict = Accepted | Rejected
