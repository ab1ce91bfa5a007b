"""The kernels that a GPU would run compile, and write no tensor that they need not: shown without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch was installed without Triton")
SLOW = (pytest.mark.fault, pytest.mark.slow)
ACTIVATION_BYTES = 128 * 96 * 128 * 128 * 2
"""Of 128 images in the finest level of `celebahq256-b`, in bfloat16."""


def kernels_of(part: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "celebdit_testing.cuda_code", part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def assert_all_compile(kernels: list[dict[str, Any]]) -> None:
    assert kernels
    assert {kernel["kernel"]: kernel["error"] for kernel in kernels if kernel["error"]} == {}


def test_noise_compiles_and_is_written_once() -> None:
    """Multiplied as an index, in 32 bits, the position of a word does not compile: "Scalar 3528531795 is out of range"."""
    kernels = kernels_of("noise")
    assert_all_compile(kernels)
    image_bytes = 128 * 3 * 256 * 256 * 4
    assert sum(size >= image_bytes for kernel in kernels for size in kernel["outputs"].values()) == 3, "images, noise and their mixture"


@pytest.mark.fault
@pytest.mark.slow
def test_a_residual_block_writes_no_activation_in_float32() -> None:
    kernels = kernels_of("residual-block")
    assert_all_compile(kernels)
    written = [size for kernel in kernels for size in kernel["outputs"].values()]
    assert max(written) == ACTIVATION_BYTES
    assert sum(size == ACTIVATION_BYTES for size in written) == 6, "after each norm and convolution, and the gradient of each norm"


@pytest.mark.fault
@pytest.mark.slow
def test_queries_and_keys_are_normalised_and_rotated_by_one_kernel() -> None:
    kernels = kernels_of("transformer-block")
    assert_all_compile(kernels)
    both = 128 * 256 * 2 * 768 * 2
    writers = [kernel["kernel"] for kernel in kernels if both in kernel["outputs"].values()]
    assert len(writers) == 1
    assert "flip" in writers[0]
    assert "rsqrt" in writers[0]


@pytest.mark.fault
@pytest.mark.slow
def test_the_output_layer_compiles() -> None:
    assert_all_compile(kernels_of("output"))
