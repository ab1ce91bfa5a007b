"""Features are taken with cuDNN, without TF32."""

import pytest
from torch.backends import cudnn

from components.features.full_convolutions import full_convolutions


def settings() -> tuple[bool, bool, bool, bool]:
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("benchmark", [False, True])
def test_only_tf32_is_turned_off_and_comes_back(benchmark: bool, deterministic: bool) -> None:
    """Without `enabled`, `cudnn.flags` turns cuDNN off: everything would run, several times as slowly."""
    with cudnn.flags(enabled=True, benchmark=benchmark, deterministic=deterministic, allow_tf32=True):
        with full_convolutions():
            assert settings() == (True, benchmark, deterministic, False)
        assert settings() == (True, benchmark, deterministic, True)
