"""The table of metrics: what each one is called, needs, yields, and adds to the protocol.

The configuration, the workers, the protocol and the report all follow from it. How a metric is measured is in the module of its name,
which is imported only to measure. Needs no PyTorch.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from components.evaluate.metrics.settings import MetricSettings
from components.features.names import INCEPTION, MIND_DIRECTIONS, RANDOM_CONV, MetricNames, image_count

if TYPE_CHECKING:  # it imports PyTorch
    from components.evaluate.metrics.inputs import MetricInputs, Value

COPY_RATIO = 1 / 3
"""A nearest training image that is nearer than this share of the second nearest one was copied."""
DENSITY_NEIGHBOURS = 5
"""Neighbours that the ball around a reference reaches to (Naeem et al. 2020)."""
_OCTAVES = range(1, 5)


class Need(Enum):
    """What a metric is measured on besides the features of the generated images and the moments of the references."""

    REFERENCE_FEATURES = auto()
    MANIFOLD = auto()
    """Features of both sides for precision and recall, VGG16's if it is configured."""
    LOGITS = auto()
    """Inception's class scores of the generated images."""
    NEAREST = auto()
    """The nearest training image of each generated one."""
    NOISE = auto()
    """Features of images of pure noise."""
    ENERGIES = auto()
    """The energy per octave of the pixels of both sides."""


@dataclass(frozen=True)
class Output:
    """One value of a metric, reported as `eval/NAME`; with an `interval` its standard error is `eval/NAME_std`."""

    name: str
    interval: bool = False
    digits: int | None = 8
    """Decimal places that are reported; None: all."""
    signed: bool = False
    """Whether it may be below zero: an unbiased estimate of a distance may."""

    @property
    def key(self) -> str:
        return f"eval/{self.name}"


@dataclass(frozen=True)
class Setup:
    """What the protocol of a metric may depend on besides the configuration."""

    num_images: int
    num_reference: int
    manifold_extractor: str


@dataclass(frozen=True)
class Metric:
    """An entry of the table."""

    name: str
    """As in `evaluation.metrics`, and the name of the module that measures it."""
    outputs: Callable[[MetricSettings, MetricNames], tuple[Output, ...]]
    protocol: Callable[[MetricSettings, Setup], Mapping[str, JsonValue]] = lambda config, setup: {}
    """What it adds to the protocol, besides its name."""
    needs: frozenset[Need] = frozenset()
    extractor: str | None = None
    """The only extractor whose features it can be measured on. None: any."""
    default: Literal["always", "inception"] | None = None
    """When it is measured if `evaluation.metrics` is left out. None: never."""
    min_images: int = 2
    """The fewest images that it needs on both sides."""
    switch: Callable[[MetricSettings], bool] | None = None
    """Decides whether it is measured, for a metric that `evaluation.metrics` does not choose."""
    in_protocol: bool = True
    """Whether the protocol names it. False for one that presets with stored reports got later and whose way of measuring is in the protocol
    already: their digest stays, and a stored report without it is measured again."""

    def measure(self, inputs: "MetricInputs") -> "tuple[Value, ...]":
        """Return its values, in the order of its outputs."""
        return importlib.import_module(f"components.evaluate.metrics.{self.name}").measure(inputs)


def kid_subset_images(config: MetricSettings, num_images: int, num_reference: int) -> int:
    """Return how many images are in each subset of the kernel distance."""
    return min(config.kid_subset_images, num_images, num_reference)


METRICS = (
    Metric(
        "frechet",
        outputs=lambda config, names: (Output(f"{names.frechet}_{names.count}", interval=config.bootstrap_replicates > 0),),
        default="always",
    ),
    Metric(
        "kid",
        outputs=lambda config, names: (
            Output(f"{names.kernel}_mean_{names.count}", signed=True),
            Output(f"{names.kernel}_std_{names.count}"),
        ),
        protocol=lambda config, setup: {
            "kid": {
                "subsets": config.kid_subsets,
                "subset_images": kid_subset_images(config, setup.num_images, setup.num_reference),
            }
        },
        needs=frozenset({Need.REFERENCE_FEATURES}),
        default="inception",
    ),
    Metric(
        "precision_recall",
        outputs=lambda config, names: tuple(
            Output(f"{part}{names.manifold_mark}_{names.count}", interval=True) for part in ("precision", "recall")
        ),
        protocol=lambda config, setup: {"precision_recall_extractor": setup.manifold_extractor},
        needs=frozenset({Need.MANIFOLD}),
        default="inception",
        min_images=4,
    ),
    Metric(
        "inception_score",
        outputs=lambda config, names: tuple(Output(f"is_{part}_{names.count}") for part in ("mean", "std")),
        needs=frozenset({Need.LOGITS}),
        extractor=INCEPTION,
        default="inception",
    ),
    Metric(
        "spectrum",
        outputs=lambda config, names: tuple(
            Output(f"spectrum_{part}_{names.count}", interval=True, digits=6) for part in ("error", *(f"octave_{n}" for n in _OCTAVES))
        ),
        needs=frozenset({Need.ENERGIES}),
        in_protocol=False,
    ),
    Metric(
        "mind",
        outputs=lambda config, names: (Output(f"mind{names.mark}_{names.count}"),),
        protocol=lambda config, setup: {"mind": {"directions": MIND_DIRECTIONS}},
        needs=frozenset({Need.REFERENCE_FEATURES}),
    ),
    Metric(
        "density_coverage",
        outputs=lambda config, names: tuple(
            Output(f"{part}{names.manifold_mark}_{names.count}", interval=True) for part in ("density", "coverage")
        ),
        protocol=lambda config, setup: {"density_coverage": {"neighbours": DENSITY_NEIGHBOURS, "extractor": setup.manifold_extractor}},
        needs=frozenset({Need.MANIFOLD}),
        min_images=DENSITY_NEIGHBOURS + 1,
    ),
    Metric(
        "copies",
        outputs=lambda config, names: (
            Output(f"copied_share_{image_count(min(names.num_images, config.memorisation_images))}", interval=True, digits=None),
        ),
        protocol=lambda config, setup: {
            "copies": {"images": config.memorisation_images, "below_second_nearest": round(COPY_RATIO, 6), "mirrored": True}
        },
        needs=frozenset({Need.NEAREST}),
    ),
    Metric(
        "memorisation",
        outputs=lambda config, names: (
            Output(f"memorised_share_{image_count(min(names.num_images, config.memorisation_images))}", interval=True, digits=None),
            Output(f"nearest_median_{image_count(min(names.num_images, config.memorisation_images))}", digits=6),
        ),
        protocol=lambda config, setup: {
            "memorisation": {"images": config.memorisation_images, "below": config.memorised_below, "mirrored": True}
        },
        needs=frozenset({Need.NEAREST}),
        switch=lambda config: config.memorisation,
    ),
    Metric(
        "noise_baseline",
        outputs=lambda config, names: (Output(f"{names.frechet}_{names.count}_of_noise"),),
        needs=frozenset({Need.NOISE}),
        switch=lambda config: config.extractor == RANDOM_CONV,
    ),
)
"""The first entry is the headline."""
HEADLINE = METRICS[0]
SELECTABLE = {metric.name: metric for metric in METRICS if metric.switch is None}
"""The metrics that `evaluation.metrics` may name."""


def default_metrics(extractor: str) -> tuple[str, ...]:
    """Return the metrics that are measured on the features of `extractor` if the configuration names none."""
    defaults = ("always", "inception") if extractor == INCEPTION else ("always",)
    return tuple(name for name, metric in SELECTABLE.items() if metric.default in defaults)


def active_metrics(config: MetricSettings) -> tuple[Metric, ...]:
    """Return the metrics that `config` asks for, in the table's order."""
    return tuple(metric for metric in METRICS if (metric.switch(config) if metric.switch else metric.name in config.metric_names))


def is_needed(need: Need, config: MetricSettings) -> bool:
    """Return whether any metric that `config` asks for needs `need`."""
    return any(need in metric.needs for metric in active_metrics(config))
