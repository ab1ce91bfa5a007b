"""What `celebdit models list` prints of a version's metrics."""

from pipeline.commands import models


def test_a_score_has_half_of_its_interval_as_everywhere() -> None:
    metrics = {"eval/fd_randconv_1k": 0.3039, "eval/fd_randconv_1k_std": 0.021, "eval/fd_randconv_1k_of_noise": 17.2, "eval/mind": 1.0}
    assert models._headline(metrics) == "eval/fd_randconv_1k 0.304 ± 0.041"
    assert models._headline({"eval/fid_50k": 4.25}) == "eval/fid_50k 4.25"
