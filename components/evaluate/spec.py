"""What one evaluation is: whose images, under which protocol, and the file by which the step tells its workers what to do.

Promises: the same weights under the same protocol have the same place in storage; samples are shared by all protocols that draw them the
same way.
"""

from functools import cached_property
from typing import Any, Literal

from components.evaluate.config import EvaluationConfig
from components.evaluate.extractors import identity_of, vgg_identity_of
from components.evaluate.protocol import Comparison, comparison_of, name_of, num_reference, protocol_digest, protocol_of, stamp
from components.manifests import CheckpointReference, DatasetManifest, Manifest
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.stores.layout import StoreLayout
from model.canonical import digest_of
from model.config import ModelSpec, SamplingConfig
from model.ema import EmaName

REPORT_FILE = "report.json"


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
    """Whether the references' statistics are in storage already, so that workers need not look at them."""

    @cached_property
    def comparison(self) -> Comparison:
        return comparison_of(self.evaluation)

    @property
    def num_images(self) -> int:
        return self.comparison.num_images

    @property
    def num_reference(self) -> int:
        return num_reference(self.evaluation, self.dataset)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What decides the numbers, apart from the weights."""
        return protocol_of(
            self.evaluation,
            self.sampling,
            self.dataset,
            extractor=identity_of(self.evaluation),
            vgg=vgg_identity_of(self.evaluation),
        )

    @property
    def protocol_digest(self) -> str:
        return protocol_digest(self.protocol)

    @property
    def protocol_name(self) -> str:
        return name_of(self.evaluation, self.dataset)

    def stamp(self) -> dict[str, Any]:
        """Return what is printed beside every number."""
        return stamp(self.protocol_name, self.protocol, self.checkpoint, self.sampling.ema)

    def report_uri(self, layout: StoreLayout) -> StoreUri:
        """Return where this evaluation's report and pictures go."""
        name = f"{self.protocol_digest[:16]}-{self.checkpoint.digest[:16]}-{EmaName(self.sampling.ema).group}"
        return layout.run(self.checkpoint.run_key).evaluations / name

    def samples_uri(self, layout: StoreLayout) -> StoreUri:
        """Return where this evaluation's samples go; a protocol that asks for more or fewer of them finds them there."""
        drawn = {"checkpoint": self.checkpoint.digest, "sampling": self.sampling.model_dump(mode="json")}
        return layout.run(self.checkpoint.run_key).samples / digest_of(drawn)[:16]
