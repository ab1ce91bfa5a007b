"""Evaluation protocols: the named ones, and the protocol of a configuration.

Promises: metrics with the same protocol digest were measured the same way and may be compared; whatever moves a metric by design is in
the digest, the checkpoint and the choice among its averages (what is measured, not how) are not. A protocol has a published name only if
it keeps all of it. Batch size, number of processes and device are not part of it: they move a metric by rounding alone.
"""

from dataclasses import asdict, dataclass

from pydantic import JsonValue

from components.evaluate.config import EvaluationConfig, ProtocolName
from components.evaluate.metrics.table import SELECTABLE, Setup, active_metrics
from components.features.names import INCEPTION, Codec
from components.manifests import CheckpointReference, DatasetManifest, EvaluationProtocol, ReferenceSplit
from model.config import SamplingConfig

CUSTOM = "custom"
JPEG_QUALITY = 75
"""PIL's and torchvision's default, which the JPEG protocols of the literature use."""


@dataclass(frozen=True)
class Comparison:
    """How many images of which kind are compared. `num_reference` None means all of the split."""

    num_images: int
    num_reference: int | None
    reference_split: ReferenceSplit
    reference_flip: bool
    codec: Codec


NAMED: dict[ProtocolName, Comparison] = {
    # All images, unprocessed.
    "clean-50k": Comparison(50_000, None, "all", reference_flip=False, codec="png"),
    # Relay Diffusion (Teng et al. 2023): as many samples as CelebA-HQ has images.
    "rdm-30k": Comparison(30_000, 30_000, "all", reference_flip=False, codec="png"),
    # The line of NVAE, LSGM, DDGAN, WaveDiff and LFM: its 27,000 training images after a random flip, and everything written as JPEG.
    "nvae27k-jpeg": Comparison(50_000, 27_000, "train", reference_flip=True, codec="jpeg"),
}


def comparison_of(config: EvaluationConfig) -> Comparison:
    """Return the comparison that `config` asks for: the named protocol with the configured changes."""
    named = NAMED[config.protocol]
    changes = {name: value for name in asdict(named) if (value := getattr(config, name)) is not None}
    return Comparison(**{**asdict(named), **changes})


def num_reference(config: EvaluationConfig, dataset: DatasetManifest) -> int:
    """Return how many images of `dataset` are compared with."""
    comparison = comparison_of(config)
    available = split_sizes(dataset)[comparison.reference_split]
    return min(comparison.num_reference or available, available)


def split_sizes(dataset: DatasetManifest) -> dict[ReferenceSplit, int]:
    """Return how many images each split has."""
    train, held_out = dataset.num_images, dataset.num_held_out
    return {"train": train, "held_out": held_out, "all": train + held_out}


def protocol_of(
    config: EvaluationConfig,
    sampling: SamplingConfig,
    dataset: DatasetManifest,
    checkpoint: CheckpointReference,
    *,
    extractor: str,
    manifold_extractor: str,
) -> EvaluationProtocol:
    """Return the protocol of an evaluation; `extractor` and `manifold_extractor` identify networks down to their weights."""
    comparison = comparison_of(config)
    setup = Setup(comparison.num_images, num_reference(config, dataset), manifold_extractor)
    metric_settings: dict[str, JsonValue] = {}
    for metric in active_metrics(config):
        metric_settings |= metric.protocol(config, setup)
    return EvaluationProtocol(
        name=_name_of(config, dataset),
        num_images=setup.num_images,
        num_reference=setup.num_reference,
        reference_split=comparison.reference_split,
        reference_flip=comparison.reference_flip,
        dataset_digest=dataset.digest,
        image_px=dataset.image_px,
        codec=comparison.codec if comparison.codec == "png" else f"jpeg-q{JPEG_QUALITY}",
        resize="none",
        extractor=extractor,
        extractor_sha256=config.weights_sha256,
        metrics=tuple(sorted(name for name in config.metric_names if SELECTABLE[name].in_protocol)),
        bootstrap_replicates=config.bootstrap_replicates,
        sampling=sampling.model_dump(mode="json", exclude={"ema"}),
        ema=sampling.ema,
        checkpoint_digest=checkpoint.digest,
        checkpoint_step=checkpoint.step,
        **metric_settings,
    )


def _name_of(config: EvaluationConfig, dataset: DatasetManifest) -> str:
    """Return the published name of the protocol, or "custom" if anything in it is not as published."""
    named = NAMED[config.protocol]
    available = split_sizes(dataset)[named.reference_split]
    as_published = comparison_of(config) == named and num_reference(config, dataset) == (named.num_reference or available)
    return config.protocol if as_published and config.extractor == INCEPTION else CUSTOM
