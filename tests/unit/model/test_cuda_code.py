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


def test_the_step_of_a_student_compiles_and_is_written_once() -> None:
    kernels = kernels_of("jump")
    assert_all_compile(kernels)
    image_bytes = 128 * 3 * 256 * 256 * 4
    assert sum(size >= image_bytes for kernel in kernels for size in kernel["outputs"].values()) == 2, "noise and the noisy images"


@pytest.mark.fault
@pytest.mark.slow
def test_an_augmentation_compiles_and_writes_a_few_images_more() -> None:
    kernels = kernels_of("noise-augmented")
    assert_all_compile(kernels)
    image_bytes = 128 * 3 * 256 * 256 * 4
    written = sum(size >= image_bytes for kernel in kernels for size in kernel["outputs"].values())
    assert 3 < written <= 16, "images, noise, their mixture, and parts of the sixteen neighbours of each pixel"


def writes(kernels: list[dict[str, Any]], size_bytes: int) -> list[str]:
    """Return the kernel of each call that writes a tensor of this size."""
    return [k["kernel"] for k in kernels for size in k["outputs"].values() if size == size_bytes for _ in range(k["calls"])]


@pytest.mark.fault
@pytest.mark.slow
def test_a_residual_block_writes_no_activation_in_float32_and_adds_no_bias_before_a_norm() -> None:
    kernels = kernels_of("residual-block")
    assert_all_compile(kernels)
    assert max(size for kernel in kernels for size in kernel["outputs"].values()) == ACTIVATION_BYTES
    own = [kernel for kernel in writes(kernels, ACTIVATION_BYTES) if not kernel.startswith("triton")]
    assert sorted(own) == ["_gradient", "_gradient", "_modulate", "_modulate"]
    assert len(writes(kernels, ACTIVATION_BYTES)) - len(own) == 1, "the sum with the input, which adds the bias of the second convolution"


@pytest.mark.fault
@pytest.mark.slow
def test_a_transformer_block_writes_its_tokens_eight_times() -> None:
    kernels = kernels_of("transformer-block")
    assert_all_compile(kernels)
    tokens = 128 * 256 * 768 * 2
    assert len(writes(kernels, tokens)) == 8, "two norms, two sums, and four gradients of these"
    assert writes(kernels, tokens).count("_rms_modulate") == 2
    assert writes(kernels, 3 * tokens) == ["_rotated_heads"], "gradients of queries, keys and values at once"
    (writer,) = writes(kernels, 2 * tokens)
    assert "flip" in writer, "queries and keys are normalised and rotated by one kernel"
    assert "rsqrt" in writer


@pytest.mark.fault
@pytest.mark.slow
def test_the_output_layer_compiles() -> None:
    assert_all_compile(kernels_of("output"))
