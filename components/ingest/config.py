"""The `data` section of the configuration: which images, how they are checked and converted."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from components.ingest.limits import Budget, Limits
from model.frozen_config import FrozenConfig, TextForm


class DataConfig(FrozenConfig):
    """Where the images come from and which of them are accepted."""

    name: Annotated[str, TextForm(r"[a-z0-9][a-z0-9-]{1,62}", example="celebahq256")] = Field(
        description="name of the dataset, part of its storage path: 2 to 63 of a-z, 0-9 and -"
    )
    source: str = Field(
        min_length=1,
        max_length=4096,
        description="where the images are: a path or URI as in [Choose a source](data.md#choose-a-source)",
    )
    image_px: int = Field(ge=8, le=2048, description="side of the square images that come out, in pixels")
    licence: str = Field(
        "unspecified",
        min_length=1,
        max_length=200,
        description="terms under which the images may be used; recorded with everything made from them",
    )
    licence_accepted_by: str | None = Field(None, max_length=200, description="who accepted the terms; needed where the source asks for it")
    min_images: int = Field(1, ge=1, description="fewer accepted images than this are refused")
    max_rejected: float = Field(0.01, ge=0, le=1, description="a larger share of rejected images is refused")
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the images set aside by their digest, never trained on")
    near_duplicate_bits: int | None = Field(
        None,
        ge=0,
        le=8,
        description="images whose 64-bit perceptual hashes differ in at most so many bits count as one; unset: not looked for",
    )
    shard_bytes: int = Field(64 * 2**20, ge=2**20, le=2**32, description="size from which a new shard is begun")
    max_image_bytes: int = Field(32 * 2**20, ge=1024, le=2**30, description="larger files are rejected unread")
    max_image_pixels: int = Field(32 * 10**6, ge=64, le=10**9, description="images with more pixels are rejected undecoded")
    max_entries: int = Field(200_000, ge=1, description="a source with more files is refused")
    max_total_bytes: int = Field(2**38, ge=1024, description="a source that unpacks to more is refused")
    max_ratio: float = Field(200.0, ge=1, description="what unpacks to more than so many times its size is refused")

    def limits(self) -> Limits:
        """Return the bounds on a single image."""
        return Limits(
            image_px=self.image_px,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
            max_ratio=self.max_ratio,
            perceptual_hash=self.near_duplicate_bits is not None,
        )

    def budget(self) -> Budget:
        """Return the bounds on a source."""
        return Budget(
            max_image_bytes=self.max_image_bytes,
            max_total_bytes=self.max_total_bytes,
            max_entries=self.max_entries,
            max_ratio=self.max_ratio,
        )

    def problems(self) -> Iterator[str]:
        if any(ord(c) < 32 for c in self.source + self.licence):
            yield "source and licence must not contain control characters"
