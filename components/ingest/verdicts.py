"""What may be said of a candidate: accepted under which rules, or rejected with which code.

Promises: plain data, no decoding. A code is part of the data set's table and of the error that refuses a source, so it is never renamed.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Rule = Literal["as_is", "upright", "converted", "cropped", "resized"]
Code = Literal[
    "ignored",
    "unsafe_name",
    "duplicate_name",
    "link",
    "special_file",
    "nested_archive",
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
    "sixteen_bit",
    "out_of_memory",
    "too_slow",
    "decoder_died",
    "duplicate",
    "near_duplicate",
]

RULES: dict[Rule, str] = {
    "as_is": "kept byte for byte",
    "upright": "turned as its EXIF orientation says",
    "converted": "made RGB",
    "cropped": "cut to the square in its centre",
    "resized": "resized once, antialiased",
}
MEANINGS: dict[Code, str] = {
    "ignored": "its name is not that of an image (not counted as rejected)",
    "unsafe_name": "its name points outside the archive, or holds control characters",
    "duplicate_name": "the archive has an entry of this name already",
    "link": "a symbolic or hard link; links are never followed",
    "special_file": "a device, pipe or sparse file",
    "nested_archive": "an archive inside the archive; archives are not opened twice",
    "encrypted": "needs a password",
    "damaged_entry": "the archive's own check of these bytes fails",
    "unreadable": "the file cannot be read",
    "compressed_too_far": "unpacks to many times its size",
    "too_many_bytes": "larger than data.max_image_bytes",
    "not_an_image": "no image format that is read here",
    "truncated": "the image ends early or is damaged",
    "too_many_pixels": "more pixels than data.max_image_pixels",
    "decompression_bomb": "few bytes that unpack to a huge picture",
    "too_small": "a side is shorter than data.image_px",
    "animated": "more than one frame",
    "sixteen_bit": "more than 8 bits per channel",
    "out_of_memory": "decoding takes more memory than a worker may use",
    "too_slow": "decoding takes too long",
    "decoder_died": "the decoding process crashed on it",
    "duplicate": "the same bytes as an image before",
    "near_duplicate": "looks like an image before (data.near_duplicate_bits)",
}


class Extent(NamedTuple):
    """Bytes that lie in the source's archive as they are to be stored."""

    at: int
    size_bytes: int


class Accepted(NamedTuple):
    """An image that enters the data set: the bytes to store, or where they lie, and what is known of them.

    `small` holds the RGB pixels of the image scaled down (`colours.small_scale`). `perceptual_hash` is None unless asked for.
    """

    data: bytes | Extent
    extension: Literal["jpg", "png"]
    sha256: str
    rules: tuple[Rule, ...]
    source_px: tuple[int, int]
    source_format: str
    small: bytes
    perceptual_hash: int | None = None

    @property
    def key(self) -> str:
        """The image's name in the data set, a function of its content."""
        return self.sha256[:20]


@dataclass(frozen=True)
class Rejected:
    """A candidate that does not enter, and why. `thumbnail` is a small JPEG of it, where one could be made."""

    code: Code
    detail: str
    thumbnail: bytes = b""


Verdict = Accepted | Rejected
