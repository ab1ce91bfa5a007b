"""Custom kernels: what they compute is what the plain functions of the same operators compute, shown without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch was installed without Triton")
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from celebdit_testing.recipes import tiny_network
from model.denoiser import build_denoiser
build_denoiser(tiny_network(block="modern"), seed=0)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
"""
OPERATORS = {
    "channel_moments": 8,
    "modulate_silu": 16,
    "gradient_moments": 8,
    "modulate_silu_backward": 16,
    "rms_modulate_backward x": 8,
    "rms_modulate_backward sums": 8,
    "rotated_heads_backward qkv": 8,
    "rotated_heads_backward sums": 8,
}
LARGEST = {"torch.float32": 1e-6, "torch.bfloat16": 2**-7}
"""Of a value that is rounded once, in shares of the largest one."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def comparisons() -> list[dict[str, Any]]:
    done = run_python("-m", "celebdit_testing.interpreted_kernels")
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_computes_what_its_plain_function_computes(comparisons: list[dict[str, Any]], operator: str) -> None:
    own = [comparison for comparison in comparisons if comparison["operator"] == operator]
    assert len(own) == OPERATORS[operator]
    assert [comparison for comparison in own if comparison["difference"] > LARGEST[comparison["dtype"]]] == []


@needs_triton
@pytest.mark.parametrize("operator", ["channel_moments", "modulate_silu_backward", "rms_modulate_backward", "rotated_heads_backward"])
def test_torch_knows_the_kernels_of_an_operator(operator: str) -> None:
    """Their source is part of the key of compiled graphs; else a cache on disk would go on with the kernels of an older version."""
    from torch._library.triton import get_triton_kernels_for_op

    for module in ("channel_sums", "token_gradients"):
        importlib.import_module(f"model.{module}")
    assert len(get_triton_kernels_for_op(f"celebdit::{operator}")) == 1


def test_a_network_works_and_says_nothing_where_there_is_no_triton() -> None:
    """Images for CPUs have none."""
    assert run_python("-c", WITHOUT_TRITON).stderr == ""
