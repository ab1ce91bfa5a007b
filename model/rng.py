"""Random numbers as a pure function of (seed, stream, step, index, element).

Promises: the bits depend on the arguments alone, never on the batch, the rank, the device or earlier draws; so a resumed run, another batch
size and another world size see the same numbers. The generator is Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"). Normal numbers may differ between devices in the last bit of log and cos.
"""

import math
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
Words = TypeVar("Words", Tensor, np.ndarray)
Step = int | Int64[Tensor, ""]
"""A step; as a tensor on the device of the indices it is no constant of a compiled graph."""


class Stream(IntEnum):
    """Use of a random number. Each use has its own stream, so that adding one never changes another."""

    ORDER = 0
    TIME = 1
    NOISE = 2
    FLIP = 3
    DROPOUT = 4
    SAMPLE = 5
    FEATURES = 6
    BOOTSTRAP = 7
    DIRECTIONS = 8
    HELD_OUT = 9
    AUGMENTATION = 10
    JUMP = 11
    POSTERIOR = 12


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Return four 32-bit words, as int64 in [0, 2**32), for each 128-bit counter given as four broadcastable words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # int64 wraps, so the high word comes back sign-extended: the mask makes the shift a logical one.
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"], num_words: int) -> Int64[Tensor, "b words"]:
    """Draw `num_words` 32-bit words for each index. Steps and indices must lie in [0, 2**32), the seed in [0, 2**64)."""
    return torch.stack(_draw(seed, stream, step, indices, num_words), dim=-1).flatten(1)[:, :num_words]


def _draw(seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"], num_words: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return words 4i to 4i + 3 of each index as four tensors of (index, i)."""
    if numpy_is_faster(indices):
        return _draw_by_numpy(seed, stream, step, indices, num_words)
    # Without the mask, Inductor (torch 2.11 to 2.15) multiplies the index itself, in 32 bits, and Triton refuses to compile that for CUDA.
    blocks = torch.arange(-(-num_words // 4), device=indices.device) & _MASK
    shape = (len(indices), len(blocks))
    # `new_full` fills on the device; `new_tensor` would copy from the host and make it wait for the device.
    step_word = step if isinstance(step, Tensor) else indices.new_full((), step)
    counter = (blocks.expand(shape), indices[:, None].expand(shape), step_word, indices.new_full((), int(stream)))
    return philox(counter, (seed & _MASK, seed >> 32))


def numpy_is_faster(indices: Tensor) -> bool:
    """Return whether words for `indices` are drawn by numpy instead of torch: on a CPU, outside traced functions."""
    # A tensor that is traced has a type of its own.
    return indices.device.type == "cpu" and type(indices) is Tensor and not torch.compiler.is_compiling()


def _draw_by_numpy(
    seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"], num_words: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `_draw` does: torch (2.15) copies each constant into a tensor, which takes longer than the operation on a few words."""
    step_word = np.atleast_1d(step.numpy() if isinstance(step, Tensor) else np.int64(step))
    counter = (np.arange(-(-num_words // 4)), indices.numpy()[:, None], step_word, np.array([int(stream)]))
    w0, w1, w2, w3 = philox(counter, (seed & _MASK, seed >> 32))
    return torch.from_numpy(w0), torch.from_numpy(w1), torch.from_numpy(w2), torch.from_numpy(w3)


def uniform(seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"], count: int) -> Float[Tensor, "b count"]:
    """Draw `count` float64 numbers in (0, 1) for each index."""
    return (words(seed, stream, step, indices, count).double() + 0.5) * 2.0**-32


def coin(seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Toss one fair coin for each index."""
    return words(seed, stream, step, indices, 1)[:, 0] >= 2**31


def normal(seed: int, stream: Stream, step: Step, indices: Int64[Tensor, " b"], shape: tuple[int, ...]) -> Float[Tensor, "b ..."]:
    """Draw a standard normal float32 tensor of `shape` for each index, by Box and Muller's transform."""
    count = math.prod(shape)
    u0, u1, u2, u3 = (((w.float() + 0.5) * 2.0**-32) for w in _draw(seed, stream, step, indices, count))
    pairs = []
    for radius_u, angle_u in ((u0, u1), (u2, u3)):
        radius, angle = (-2 * radius_u.log()).sqrt(), angle_u * (2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :count].reshape(len(indices), *shape)
