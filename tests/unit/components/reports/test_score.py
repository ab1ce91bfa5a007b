"""A score in as many digits as its interval allows."""

import pytest

from components.reports.score import score_sentence, score_text


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (0.29961, 0.0102, "0.300 ± 0.020"),
        (17.19765, 0.11186, "17.20 ± 0.22"),
        (412.7, 9.0, "413 ± 18"),
        (1234.5, 300.0, "1234 ± 588"),
        (12.3456789, None, "12.35"),
        (0.5, 0.0, "0.500 ± 0.000"),
        (3e-9, 1e-9, "0.000000 ± 0.000000"),
    ],
)
def test_digits_follow_the_interval(value: float, std: float | None, text: str) -> None:
    assert score_text(value, std) == text


def test_a_sentence_says_what_noise_scores() -> None:
    assert score_sentence("eval/fid_5k", 0.3, 0.0102, 17.19) == "eval/fid_5k 0.300 ± 0.020 (pure noise scores 17.2)"
    assert score_sentence("eval/fid_5k", 0.3, None, None) == "eval/fid_5k 0.3"
