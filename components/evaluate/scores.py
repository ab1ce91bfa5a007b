"""From features to numbers: every metric under a name that says what it is and how many images it was made from.

Promises: `eval/fid_50k` is FID on 50,000 images and nothing else is called so; KID, precision, recall and Inception score are
torch-fidelity's own functions on our features; a number with an interval has its standard error beside it as `..._std`.
torch-fidelity takes seconds to import, which is left to the numbers that need it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.evaluate.config import EvaluationConfig
from components.evaluate.extractors import stem_of
from components.evaluate.metrics.frechet import Interval, Statistics, bootstrap, frechet_distance, of_share, statistics
from components.evaluate.protocol import Codec, comparison_of

_MANY_ROWS = 10_000
_ISC_SPLITS = 10


@dataclass(frozen=True)
class Features:
    """The features of one side of the comparison; `manifold` are those for precision and recall, `logits` Inception's class scores."""

    main: np.ndarray
    manifold: np.ndarray
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class Scores:
    """Numbers, the headline's key among them, and the intervals of those that have one."""

    headline: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]


def counted(num_images: int) -> str:
    """Return how a metric's name says the number of images: 50k, 5500."""
    return f"{num_images // 1000}k" if num_images % 1000 == 0 else str(num_images)


def metric_name(extractor: str, num_images: int, codec: Codec = "png") -> str:
    """Return the key of the Frechet distance: `eval/fid_50k` is FID on 50,000 images as they are.

    Any other extractor has a name of its own, and images that went through JPEG are marked: `eval/fid_50k_jpeg`.
    """
    return f"eval/{stem_of(extractor)[0]}_{_ending(num_images, codec)}"


def _ending(num_images: int, codec: Codec) -> str:
    return counted(num_images) if codec == "png" else f"{counted(num_images)}_{codec}"


def score(
    config: EvaluationConfig, fake: Features, real: Features, reference: Statistics, *, kid_subset_images: int, device: torch.device
) -> Scores:
    """Return all numbers that `config` asks for."""
    codec = comparison_of(config).codec
    count = _ending(len(fake.main), codec)
    _, kernel, mark = stem_of(config.extractor)
    headline = metric_name(config.extractor, len(fake.main), codec)
    rows = torch.from_numpy(fake.main).to(device)
    value = frechet_distance(statistics(rows), reference)
    metrics, intervals = {headline: value}, {}
    if config.bootstrap_replicates:
        intervals[headline] = bootstrap(rows, reference, value, replicates=config.bootstrap_replicates, seed=0)
    if "kid" in config.metric_names:
        mean, deviation = _kernel_distance(fake.main, real.main, subsets=config.kid_subsets, subset_images=kid_subset_images)
        metrics |= {f"eval/{kernel}_mean_{count}": mean, f"eval/{kernel}_std_{count}": deviation}
    if "precision_recall" in config.metric_names:
        own = "" if config.vgg_weights is not None else mark
        for name, (share, trials) in _precision_recall(fake.manifold, real.manifold, device).items():
            key = f"eval/{name}{own}_{count}"
            metrics[key] = share
            intervals[key] = of_share(share, trials)
    if "inception_score" in config.metric_names and fake.logits is not None:
        mean, deviation = _inception_score(fake.logits)
        metrics |= {f"eval/is_mean_{count}": mean, f"eval/is_std_{count}": deviation}
    metrics |= {f"{key}_std": interval.std for key, interval in intervals.items()}
    return Scores(headline, {key: round(number, 8) for key, number in metrics.items()}, intervals)


def _inception_score(logits: np.ndarray) -> tuple[float, float]:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric  # noqa: PLC0415

    found = isc_features_to_metric(torch.from_numpy(logits), splits=min(_ISC_SPLITS, len(logits)))
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def _kernel_distance(fake: np.ndarray, real: np.ndarray, *, subsets: int, subset_images: int) -> tuple[float, float]:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric  # noqa: PLC0415

    found = kid_features_to_metric(
        torch.from_numpy(fake.astype(np.float64)),
        torch.from_numpy(np.asarray(real, dtype=np.float64)),
        kid_subsets=subsets,
        kid_subset_size=subset_images,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def _precision_recall(fake: np.ndarray, real: np.ndarray, device: torch.device) -> dict[str, tuple[float, int]]:
    """Return (share, images that it is a share of) by name."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric  # noqa: PLC0415

    first, second = (_on(rows, device) for rows in (fake, real))
    found = prc_features_to_metric(first, second, save_cpu_ram=max(len(fake), len(real)) > _MANY_ROWS, verbose=False)
    return {"precision": (found[KEY_METRIC_PRECISION], len(fake)), "recall": (found[KEY_METRIC_RECALL], len(real))}


def _on(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
