"""Validation of configuration sections."""

import pytest

from components.errors import BadInput
from components.runtime.context import read_section
from model.config import OptimizerConfig


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lr_peak": "a"}', "optimizer.lr_peak: .*given: 'a'"),
        ('{"lr_peak": 2.0}', "optimizer.lr_peak: .*less than or equal to 1"),
        ('{"lrr": 1}', "unknown key optimizer.lrr"),
        ('{"warmup_steps": 8.0}', "optimizer.warmup_steps"),
        ("[]", "optimizer"),
        ("{", "optimizer"),
        ('{"schedule": "cosine"}', "needs decay_steps"),
    ],
)
def test_a_section_that_does_not_validate_is_described(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_section(OptimizerConfig, text, name="optimizer")
