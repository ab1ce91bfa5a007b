"""The gate's bounds on single metrics."""

from dataclasses import dataclass

from components.errors import BadInput
from components.gate.config import GateConfig
from components.manifests import EvaluationReport


@dataclass(frozen=True)
class BoundCheck:
    """Whether a metric is within a bound."""

    key: str
    text: str
    """The bound, like "at most 10"."""
    holds: bool
    reason: str
    """The sentence about it in the decision."""


def check_bounds(report: EvaluationReport, config: GateConfig) -> list[BoundCheck]:
    """Compare the metrics of `report` with every bound; a cautious gate uses the worse end of a metric's 95 % interval.

    Raises:
        BadInput: if a bound names a metric that was not measured.
    """
    upper = [_check(report, key, bound, upper=True, cautious=config.cautious) for key, bound in config.at_most.items()]
    return upper + [_check(report, key, bound, upper=False, cautious=config.cautious) for key, bound in config.at_least.items()]


def _check(report: EvaluationReport, key: str, bound: float, *, upper: bool, cautious: bool) -> BoundCheck:
    if key not in report.metrics:
        raise BadInput(f"gate bound on {key}, which was not measured", hint=f"measured: {', '.join(sorted(report.metrics))}")
    value, interval = report.metrics[key], report.intervals.get(key)
    text = f"at {'most' if upper else 'least'} {bound:.4g}"
    if interval is None or not cautious:
        worst, shown = value, f"{key} is {value:.4g}"
    else:
        worst, shown = interval.high if upper else interval.low, f"{key} is {value:.4g} (95 %: {interval.low:.4g} to {interval.high:.4g})"
    return BoundCheck(key, text, worst <= bound if upper else worst >= bound, f"{shown}, {text} is required")
