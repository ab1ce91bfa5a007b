"""From features to metrics, under the names that the table of metrics gives them."""

from dataclasses import dataclass

from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import headline_metric, outputs_of
from components.evaluate.metrics.inputs import MetricInputs
from components.evaluate.metrics.table import Need, active_metrics
from components.manifests import MetricInterval


@dataclass(frozen=True)
class Scores:
    """All metrics of an evaluation, the headline's key among them, and the intervals of those that have one."""

    headline: str
    metrics: dict[str, float]
    intervals: dict[str, MetricInterval]


def score(config: EvaluationConfig, inputs: MetricInputs) -> Scores:
    """Measure all metrics that `config` asks for; one with an interval has its standard error beside it as `..._std`."""
    metrics: dict[str, float] = {}
    intervals: dict[str, MetricInterval] = {}
    for metric in active_metrics(config):
        if Need.NEAREST in metric.needs and inputs.nearest is None:
            continue
        for output, measured in zip(outputs_of(metric, config), metric.measure(inputs), strict=True):
            metrics[output.key] = measured.value if output.digits is None else round(measured.value, output.digits)
            if measured.interval is not None:
                metrics[f"{output.key}_std"] = round(measured.interval.std, 8)
                intervals[output.key] = measured.interval
    return Scores(headline_metric(config), metrics, intervals)
