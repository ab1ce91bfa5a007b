"""The `evaluation` section: how many images, which features, which weights."""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import FrozenConfig


class EvaluationConfig(FrozenConfig):
    """The protocol of the numbers, as far as it is a choice."""

    num_images: int = Field(50_000, ge=2, le=1_000_000, description="images to generate")
    num_reference: int | None = Field(None, ge=2, description="images of the data set to compare with. Default: all")
    extractor: Literal["random-conv", "inception-v3-compat"] = Field(
        "inception-v3-compat",
        description="inception-v3-compat gives FID; random-conv needs no weights and gives a distance of its own name",
    )
    weights: str | None = Field(None, max_length=4096, description="path or s3:// location of the extractor's weights")
    weights_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="sha256 of the weights file; checked before it is loaded"
    )
    batch_images: int = Field(64, ge=1, le=4096, description="images per forward pass and process")

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.extractor == "random-conv":
            if self.weights is not None:
                raise ValueError("weights belong to extractor 'inception-v3-compat'; 'random-conv' has none")
        elif self.weights is None or self.weights_sha256 is None:
            raise ValueError(
                "extractor 'inception-v3-compat' needs weights and weights_sha256: the file weights-inception-2015-12-05-6726825d.pth "
                "of the torch-fidelity project's releases, at a path or s3:// location; or choose extractor = 'random-conv'"
            )
        return self
