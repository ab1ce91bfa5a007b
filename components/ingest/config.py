"""The `data` section: which images, how they are checked, and what they become."""

from typing import Self

from pydantic import Field, model_validator

from model.config import FrozenConfig


class DataConfig(FrozenConfig):
    """Where the images come from and which of them are accepted."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$", description="name of the data set, part of its storage path")
    source: str = Field(min_length=1, max_length=4096, description="a zip, tar or folder of images, or synthetic://?count=N&seed=N&size=N")
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
    shard_bytes: int = Field(256 * 2**20, ge=2**20, le=2**32, description="size from which a new shard is begun")
    max_image_bytes: int = Field(64 * 2**20, ge=1024, description="larger files are rejected unread")
    max_image_pixels: int = Field(64 * 10**6, ge=64, description="images with more pixels are rejected undecoded")

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if any(ord(c) < 32 for c in self.source + self.licence):
            raise ValueError("source and licence must not contain control characters")
        return self
