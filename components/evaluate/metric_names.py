"""Names of the metrics that an evaluation measures, known from its configuration alone.

Promises: `measured_metrics` names every key that the evaluation's report will have, so that a bound on any other metric can be refused
before anything runs. How the metrics are computed is in `scores.py` and `measure.py`.
"""

from components.evaluate.config import RANDOM_CONV, EvaluationConfig
from components.evaluate.extractors import stem_of
from components.evaluate.protocol import Codec, comparison_of


def counted(num_images: int) -> str:
    """Return how a metric's name gives the number of images: 50k, 5500."""
    return f"{num_images // 1000}k" if num_images % 1000 == 0 else str(num_images)


def ending(num_images: int, codec: Codec) -> str:
    """Return the last part of a metric's name: the number of images, and the codec if it is not PNG."""
    return counted(num_images) if codec == "png" else f"{counted(num_images)}_{codec}"


def metric_name(extractor: str, num_images: int, codec: Codec = "png") -> str:
    """Return the key of the Frechet distance: `eval/fid_50k` is FID on 50,000 images as they are.

    Any other extractor has a name of its own, and images that went through JPEG are marked: `eval/fid_50k_jpeg`.
    """
    return f"eval/{stem_of(extractor)[0]}_{ending(num_images, codec)}"


def measured_metrics(config: EvaluationConfig) -> frozenset[str]:
    """Return the keys of all metrics that an evaluation under `config` reports.

    The two of memorisation are missing from the report of a dataset with fewer than two training images.
    """
    comparison = comparison_of(config)
    count = ending(comparison.num_images, comparison.codec)
    _, kernel, mark = stem_of(config.extractor)
    headline = metric_name(config.extractor, comparison.num_images, comparison.codec)
    names = {headline}
    if config.bootstrap_replicates:
        names.add(f"{headline}_std")
    if config.extractor == RANDOM_CONV:
        names.add(f"{headline}_of_noise")
    if "kid" in config.metric_names:
        names |= {f"eval/{kernel}_mean_{count}", f"eval/{kernel}_std_{count}"}
    if "precision_recall" in config.metric_names:
        own = "" if config.vgg_weights is not None else mark
        names |= {f"eval/{name}{own}_{count}{part}" for name in ("precision", "recall") for part in ("", "_std")}
    if "inception_score" in config.metric_names:
        names |= {f"eval/is_mean_{count}", f"eval/is_std_{count}"}
    if config.memorisation:
        looked_at = counted(min(config.memorisation_images, comparison.num_images))
        names |= {f"eval/memorised_share_{looked_at}", f"eval/memorised_share_{looked_at}_std", f"eval/nearest_median_{looked_at}"}
    return frozenset(names)
