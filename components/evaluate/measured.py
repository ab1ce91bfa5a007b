"""Which metrics a configuration measures, by name, before anything is measured. Needs no PyTorch."""

from components.evaluate.config import EvaluationConfig
from components.evaluate.metrics.table import HEADLINE, Metric, Output, active_metrics
from components.evaluate.protocol import comparison_of
from components.features.names import MetricNames, names_for


def measured_metrics(config: EvaluationConfig) -> tuple[str, ...]:
    """Return the keys of all metrics that an evaluation with `config` reports, the headline first.

    An evaluation reports exactly these; only a dataset with fewer than two training images has no memorisation metrics.
    """
    keys: list[str] = []
    for metric in active_metrics(config):
        for output in outputs_of(metric, config):
            keys += [output.key, f"{output.key}_std"] if output.interval else [output.key]
    return tuple(keys)


def later_metrics(config: EvaluationConfig) -> tuple[str, ...]:
    """Return the keys of the metrics that `config` asks for and its protocol does not name: a stored report may lack them."""
    return tuple(output.key for metric in active_metrics(config) if not metric.in_protocol for output in outputs_of(metric, config))


def may_be_negative(config: EvaluationConfig, key: str) -> bool:
    """Return whether the metric with this key may be below zero."""
    return any(output.signed and output.key == key for metric in active_metrics(config) for output in outputs_of(metric, config))


def least_images(config: EvaluationConfig) -> int:
    """Return how many images each side needs, so that every metric that `config` asks for can be measured."""
    return max(metric.min_images for metric in active_metrics(config))


def headline_metric(config: EvaluationConfig) -> str:
    """Return the key of the Frechet distance, by which checkpoints are compared."""
    return outputs_of(HEADLINE, config)[0].key


def outputs_of(metric: Metric, config: EvaluationConfig) -> tuple[Output, ...]:
    """Return what `metric` yields under `config`."""
    return metric.outputs(config, metric_names(config))


def metric_names(config: EvaluationConfig) -> MetricNames:
    """Return the parts of the metric names of an evaluation."""
    comparison = comparison_of(config)
    return names_for(config.extractor, comparison.num_images, comparison.codec, on_vgg=config.vgg_weights_sha256 is not None)
