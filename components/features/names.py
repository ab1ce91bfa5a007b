"""Names of metrics: what they are measured on and from how many images.

`eval/fid_50k` is FID on 50,000 images as they are; `eval/fid_50k_jpeg` is on images that went through JPEG; `eval/fd_dinov2_50k` and
`eval/fd_randconv_1k` are distances on the features of other networks, which are not called FID. Needs no PyTorch.
"""

from dataclasses import dataclass
from typing import Literal

Codec = Literal["png", "jpeg"]
INCEPTION = "inception-v3-compat"
RANDOM_CONV = "random-conv"
DINOV2 = "dinov2-vit-l-14"
MIND_DIRECTIONS = 1024
"""Directions that MIND projects features on."""
_MARKS = {RANDOM_CONV: "randconv", DINOV2: "dinov2"}


@dataclass(frozen=True)
class MetricNames:
    """The parts that the names of one evaluation's metrics are made of."""

    frechet: str
    """What the Frechet distance is called: `fid` on Inception's features, else `fd_` and the extractor."""
    kernel: str
    """What the kernel distance is called: `kid`, or `kd_` and the extractor."""
    mark: str
    """Appended to the names of other metrics on the same features: `_` and the extractor, or nothing for Inception."""
    manifold_mark: str
    """Appended to precision and recall: `_` and the extractor, or nothing for Inception and VGG16."""
    num_images: int
    codec: Codec

    @property
    def count(self) -> str:
        """The number of images, and the codec if it changes pixels: `50k`, `5500`, `50k_jpeg`."""
        count = image_count(self.num_images)
        return count if self.codec == "png" else f"{count}_{self.codec}"


def names_for(extractor: str, num_images: int, codec: Codec = "png", *, on_vgg: bool = False) -> MetricNames:
    """Return the names of metrics on `num_images` images and the features of `extractor`; `on_vgg` if precision and recall use VGG16's."""
    frechet, kernel, mark = metric_prefixes(extractor)
    return MetricNames(frechet, kernel, mark, "" if on_vgg else mark, num_images, codec)


def image_count(num_images: int) -> str:
    """Return a number of images as metric names have it: 50k, 5500."""
    return f"{num_images // 1000}k" if num_images % 1000 == 0 else str(num_images)


def metric_prefixes(extractor: str) -> tuple[str, str, str]:
    """Return the names of the Frechet and the kernel distance on the features of `extractor`, and the mark of other metrics."""
    if extractor == INCEPTION:
        return "fid", "kid", ""
    mark = _MARKS.get(extractor) or "".join(c if c.isalnum() else "_" for c in extractor.rpartition(":")[2].lower())
    return f"fd_{mark}", f"kd_{mark}", f"_{mark}"
