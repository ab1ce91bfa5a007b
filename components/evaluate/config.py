"""The `evaluation` section: protocol, feature extractor, metrics and their intervals."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from components.evaluate.metrics.table import HEADLINE, SELECTABLE, Need, default_metrics, is_needed
from components.features.config import Sha256
from components.features.names import DINOV2, INCEPTION, RANDOM_CONV, Codec
from components.manifests import ReferenceSplit
from model.frozen_config import FrozenConfig, TextForm

ProtocolName = Literal["clean-50k", "rdm-30k", "nvae27k-jpeg"]
if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(SELECTABLE)]
Extractor = Annotated[
    str,
    TextForm(
        r"[a-z0-9][a-z0-9.-]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*",
        example=f"{INCEPTION}, {RANDOM_CONV} or package.module:Class",
    ),
]


class EvaluationConfig(FrozenConfig):
    """How samples are compared with the dataset; a field that is left out is the named protocol's."""

    protocol: ProtocolName = Field(
        "clean-50k", description="source of the fields below that are left out; if any of them is changed, the protocol is called 'custom'"
    )
    num_images: int | None = Field(None, ge=2, le=1_000_000, description="images to generate. Default: the protocol's")
    num_reference: int | None = Field(
        None, ge=2, description="images of the dataset to compare with, the first in key order. Default: the protocol's"
    )
    reference_split: ReferenceSplit | None = Field(None, description="images of the dataset to compare with. Default: the protocol's")
    reference_flip: bool | None = Field(None, description="mirror each reference image with probability one half. Default: the protocol's")
    codec: Codec | None = Field(None, description="what every image goes through before its features are taken. Default: the protocol's")
    extractor: Extractor = Field(
        INCEPTION,
        max_length=200,
        description="inception-v3-compat gives FID; dinov2-vit-l-14 the distance on DINOv2's features; random-conv needs no weights; "
        "else a name that torch-fidelity knows, "
        "or your own 'package.module:Class' (a torch_fidelity FeatureExtractorBase)",
    )
    weights: str | None = Field(
        None,
        max_length=4096,
        description="path or s3:// location of the extractor's weights. Default: the store's, by weights_sha256",
    )
    weights_sha256: Sha256 | None = Field(None, description="sha256 of the weights file; checked before it is loaded")
    vgg_weights: str | None = Field(
        None,
        max_length=4096,
        description="path or s3:// location of VGG16's weights, for precision and recall. Default: the store's",
    )
    vgg_weights_sha256: Sha256 | None = Field(None, description="sha256 of the VGG16 weights file. Default: the features of the extractor")
    metrics: tuple[MetricName, ...] | None = Field(
        None,
        min_length=1,
        max_length=len(SELECTABLE),
        description="default: frechet, kid, precision_recall and inception_score for inception-v3-compat, else only the Frechet distance",
    )
    kid_subsets: int = Field(100, ge=1, le=10_000, description="subsets that the kernel distance is averaged over")
    kid_subset_images: int = Field(1000, ge=2, le=100_000, description="images per subset, or as many as there are")
    bootstrap_replicates: int = Field(20, ge=0, le=1000, description="resamples behind the interval of the Frechet distance; 0: none")
    memorisation: bool = Field(True, description="find the nearest training image of each sample")
    memorisation_images: int = Field(10_000, ge=1, le=1_000_000, description="most samples whose nearest training image is searched")
    memorised_below: float = Field(
        0.5,
        gt=0,
        le=10,
        description="a sample nearer than this share of the usual distance between neighbouring training images counts as copied",
    )
    champion: bool = Field(True, description="also measure the model's champion, unless it was measured under this protocol already")
    batch_images: int | None = Field(None, ge=1, le=4096, description="images per forward pass and process. Default: what fits in memory")
    shard_images: int = Field(256, ge=1, le=100_000, description="images per stored shard of samples: the most work that a kill may cost")

    @property
    def metric_names(self) -> tuple[MetricName, ...]:
        """The configured metrics, or the default ones."""
        return default_metrics(self.extractor) if self.metrics is None else self.metrics

    def problems(self) -> Iterator[str]:
        if self.bootstrap_replicates == 1:
            yield "bootstrap_replicates 1 gives no interval: use 0 for none, or at least 2"
        if HEADLINE.name not in self.metric_names:
            yield f"metrics must include '{HEADLINE.name}', the headline"
        for metric in (SELECTABLE[name] for name in self.metric_names):
            if metric.extractor not in (None, self.extractor):
                yield f"metrics '{metric.name}' needs extractor '{metric.extractor}', this is '{self.extractor}'"
        if is_needed(Need.NEAREST, self) and self.reference_split == "held_out":
            yield ("memorisation looks for training images: use reference_split 'train' or 'all', or memorisation = false and no 'copies'")
        yield from self._weights_problems()

    def _weights_problems(self) -> Iterator[str]:
        if self.extractor == RANDOM_CONV and self.weights is not None:
            yield f"weights belong to extractor '{INCEPTION}'; '{RANDOM_CONV}' has none"
        if self.extractor.startswith("dinov2-") and self.extractor != DINOV2:
            yield (
                f"extractor '{self.extractor}' cannot be used: torch-fidelity loads it from the network alone, never from weights; "
                f"of DINOv2's networks '{DINOV2}' can be used"
            )
        # Without a path, torch-fidelity downloads the weights and does not verify them.
        if self.weights is self.weights_sha256 is None and self.extractor != RANDOM_CONV and ":" not in self.extractor:
            yield (
                f"extractor '{self.extractor}' needs weights and weights_sha256: `celebdit weights add` the file, then set the second "
                f"({INCEPTION}: weights-inception-2015-12-05-6726825d.pth of the torch-fidelity project's releases; "
                f"{DINOV2}: dinov2_vitl14_pretrain.pth of DINOv2's); "
                f"'{RANDOM_CONV}' and your own ('package.module:Class') need none"
            )
        for name, weights, sha256 in (
            ("weights", self.weights, self.weights_sha256),
            ("vgg_weights", self.vgg_weights, self.vgg_weights_sha256),
        ):
            if weights is not None and sha256 is None:
                yield f"{name} and {name}_sha256 belong together: give both (sha256sum FILE prints the second)"
        on_vgg = [name for name, metric in SELECTABLE.items() if Need.MANIFOLD in metric.needs]
        if self.vgg_weights_sha256 is not None and not set(on_vgg) & set(self.metric_names):
            yield f"vgg_weights are for metrics '{' or '.join(on_vgg)}', which is not configured"
