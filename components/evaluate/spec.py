"""What an evaluation is: the protocol that every number is made under, and the file by which the step tells its workers what to do.

Promises: two numbers with the same protocol digest are comparable; anything that could move a number is in the protocol.
"""

from typing import Any, Literal

from components.evaluate.config import EvaluationConfig
from components.evaluate.features import identity_of
from components.manifests import CheckpointManifest, DatasetManifest, Manifest, digest_of
from components.resources import ResourcesConfig
from model.config import SamplingConfig


class EvaluateSpec(Manifest):
    """Everything that a worker needs besides its environment."""

    kind: Literal["evaluate-spec"] = "evaluate-spec"
    checkpoint: CheckpointManifest
    dataset: DatasetManifest
    evaluation: EvaluationConfig
    sampling: SamplingConfig
    resources: ResourcesConfig

    @property
    def num_reference(self) -> int:
        return min(self.evaluation.num_reference or self.dataset.num_images, self.dataset.num_images)

    def protocol(self) -> dict[str, Any]:
        """Return what decides the numbers, apart from the checkpoint."""
        return {
            "num_images": self.evaluation.num_images,
            "num_reference": self.num_reference,
            "reference_split": "train",
            "dataset_digest": self.dataset.digest,
            "image_px": self.dataset.image_px,
            "codec": "uint8",
            "resize": "none",
            "extractor": identity_of(self.evaluation),
            "sampling": self.sampling.model_dump(mode="json"),
        }

    def protocol_digest(self) -> str:
        return digest_of(self.protocol())
