"""One evaluation: checkpoint, dataset and protocol, as the job specification that the worker processes read.

Promises: the same weights under the same protocol have the same place in storage; samples are shared by all protocols that sample
alike.
"""

from functools import cached_property
from typing import Literal

from components.evaluate.config import EvaluationConfig
from components.evaluate.protocol import Comparison, comparison_of, num_reference, protocol_of
from components.features.extractors import identity_of, vgg_identity_of
from components.manifests import CheckpointReference, DatasetManifest, EvaluationProtocol, Manifest
from components.reports.plural import plural
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.stores.layout import StoreLayout
from model.canonical import digest_of
from model.config import ModelSpec, SamplingConfig
from model.ema import EmaName
from model.sampler_table import SAMPLERS

REPORT_FILE = "report.json"
_NAMED_IF_DIFFERENT = ("spacing", "time_shift", "eta", "clip_x")
"""Settings of sampling besides sampler and steps that change the image of a seed."""


class EvaluateSpec(Manifest):
    """Everything that a worker needs besides its environment."""

    kind: Literal["evaluate-spec"] = "evaluate-spec"
    checkpoint: CheckpointReference
    model: ModelSpec
    dataset: DatasetManifest
    evaluation: EvaluationConfig
    sampling: SamplingConfig
    resources: ResourcesConfig
    reference_known: bool = False
    """Whether the references' features are in storage already, so that workers do not compute them."""

    @cached_property
    def comparison(self) -> Comparison:
        return comparison_of(self.evaluation)

    @property
    def num_images(self) -> int:
        return self.comparison.num_images

    @property
    def num_reference(self) -> int:
        return num_reference(self.evaluation, self.dataset)

    @property
    def how_drawn(self) -> str:
        """Sampler and steps, like "heun, 20 steps"."""
        return f"{self.sampling.sampler}, {plural(self.sampling.num_steps, 'step')}"

    def how_drawn_beside(self, other: SamplingConfig) -> str | None:
        """Return how images are drawn if it is not as with `other`: sampler, steps, and each further setting of its own that differs."""
        read = [name for name in _NAMED_IF_DIFFERENT if name != "eta" or SAMPLERS[self.sampling.sampler].uses_eta]
        differing = [name for name in read if getattr(self.sampling, name) != getattr(other, name)]
        if not differing and (self.sampling.sampler, self.sampling.num_steps) == (other.sampler, other.num_steps):
            return None
        return ", ".join([self.how_drawn, *(f"{name} {getattr(self.sampling, name)}" for name in differing)])

    @cached_property
    def protocol(self) -> EvaluationProtocol:
        """How this evaluation measures, and what."""
        return protocol_of(
            self.evaluation,
            self.sampling,
            self.dataset,
            self.checkpoint,
            extractor=self.extractor_identity,
            manifold_extractor=self.manifold_extractor_identity,
        )

    @cached_property
    def extractor_identity(self) -> str:
        """The feature extractor down to its weights or source."""
        return identity_of(self.evaluation)

    @cached_property
    def manifold_extractor_identity(self) -> str:
        """The extractor that precision and recall are measured on: VGG16 if it is configured, else the same as for the other metrics."""
        return vgg_identity_of(self.evaluation.vgg_weights_sha256) or self.extractor_identity

    def report_uri(self, layout: StoreLayout) -> StoreUri:
        """Return where this evaluation's report and images are stored."""
        name = f"{self.protocol.digest[:16]}-{self.checkpoint.digest[:16]}-{EmaName(self.sampling.ema).group}"
        return layout.run(self.checkpoint.run_key).evaluations / name

    def samples_uri(self, layout: StoreLayout) -> StoreUri:
        """Return where this evaluation's samples are stored; protocols with more or fewer images share them."""
        identity = {"checkpoint": self.checkpoint.digest, "sampling": self.sampling.model_dump(mode="json")}
        return layout.run(self.checkpoint.run_key).samples / digest_of(identity)[:16]
