"""Relations between the sections of a configuration: what is refused although each section is valid by itself.

Promises: pure functions of sections; every problem names the fields, their values and what to set.
"""

from collections.abc import Callable, Iterator, Mapping

from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import least_images, measured_metrics
from components.evaluate.metrics.table import active_metrics
from components.evaluate.protocol import comparison_of
from components.gate.config import GateConfig
from components.ingest.config import DataConfig
from components.resources import ResourcesConfig
from model.config import STUDENT_SAMPLER, DiffusionConfig, DistillConfig, NetworkConfig, SamplingConfig, TrainingConfig
from model.frozen_config import FrozenConfig
from pipeline.variants import misplaced_settings, toml_value


def _same_image_px(data: DataConfig, network: NetworkConfig) -> Iterator[str]:
    if data.image_px != network.image_px:
        yield f"data.image_px {data.image_px} and network.image_px {network.image_px} must be the same"


def _ema_is_tracked(training: TrainingConfig, sampling: SamplingConfig) -> Iterator[str]:
    try:
        training.check_ema(sampling.ema)
    except ValueError as error:
        yield f"sampling.{error}"


def _batch_fits_ranks(training: TrainingConfig, resources: ResourcesConfig) -> Iterator[str]:
    try:
        training.batch_plan(resources.num_ranks)
    except ValueError as error:
        yield f"training.{error}"


def _student_is_sampled_as_trained(distill: DistillConfig, diffusion: DiffusionConfig, sampling: SamplingConfig) -> Iterator[str]:
    if distill.teacher is None:
        return
    if diffusion.path != "rectified_flow":
        yield f"distill.teacher needs diffusion.path 'rectified_flow', not '{diffusion.path}': a student steps over continuous times"
    for name, value in student_sampling_changes(distill, sampling).items():
        yield (
            f"sampling.{name} {toml_value(getattr(sampling, name))} is not how a student of distill.steps {distill.steps} draws images: "
            f"set sampling.{name}={value}"
        )


def student_sampling_changes(distill: DistillConfig, sampling: SamplingConfig) -> dict[str, str | int | float]:
    """Return what `sampling` must have instead, by setting, to draw images in the steps that a student is trained for."""
    expected: dict[str, str | int | float] = {"sampler": STUDENT_SAMPLER, "num_steps": distill.steps, "time_shift": 1.0}
    return {name: value for name, value in expected.items() if getattr(sampling, name) != value}


def _champion_is_measured(gate: GateConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    if (gate.no_worse_than_champion or gate.better_than_champion) and not evaluation.champion:
        yield "gate.no_worse_than_champion compares with the champion: set evaluation.champion=true, or it to false"


def _bounds_are_measured(gate: GateConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    measured = measured_metrics(evaluation)
    for name in ("at_most", "at_least"):
        for metric in getattr(gate, name):
            if metric not in measured:
                yield f"gate.{name}: {metric!r} will not be measured: the evaluation section gives {', '.join(sorted(measured))}"


def _images_suffice(data: DataConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    comparison, least = comparison_of(evaluation), least_images(evaluation)
    for name in ("num_images", "num_reference"):
        if (count := getattr(comparison, name)) is not None and count < least:
            metrics = ", ".join(metric.name for metric in active_metrics(evaluation) if metric.min_images > count)
            yield f"evaluation.{name} {count} is too few for evaluation.metrics {metrics}: use at least {least}"
    if comparison.reference_split == "held_out" and not data.held_out:
        yield "evaluation.reference_split 'held_out' has no images while data.held_out is 0: set both, or compare with 'train'"


_RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., Iterator[str]]], ...] = (
    (("data", "network"), _same_image_px),
    (("training", "sampling"), _ema_is_tracked),
    (("training", "resources"), _batch_fits_ranks),
    (("distill", "diffusion", "sampling"), _student_is_sampled_as_trained),
    (("gate", "evaluation"), _champion_is_measured),
    (("gate", "evaluation"), _bounds_are_measured),
    (("data", "evaluation"), _images_suffice),
)


def relation_problems(sections: Mapping[str, FrozenConfig]) -> Iterator[str]:
    """Return what is wrong between sections that are valid by themselves; relations of missing ones are not looked at."""
    for names, check in _RELATIONS:
        if sections.keys() >= set(names):
            yield from check(*(sections[name] for name in names))
    yield from misplaced_settings(sections)
