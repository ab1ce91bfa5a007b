"""Counter-based random numbers: the published generator, and independence from how they are drawn."""

import numpy as np
import pytest
import torch

from model import rng

# Known answers of Philox4x32-10 from the Random123 distribution (kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = rng.philox(tuple(torch.tensor([word]) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected


class Traced(torch.Tensor):
    """A tensor that numpy does not read, as one that is traced."""


@pytest.mark.parametrize("step", [0, 2**32 - 1, torch.tensor(123_456_789), torch.tensor(2**32 - 1)], ids=str)
@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**64 - 1, 0x123456789ABCDEF0])
@pytest.mark.parametrize("num_words", [1, 4, 7, 100])
def test_words_on_a_cpu_are_those_of_torchs_operations(seed: int, step: rng.Step, num_words: int) -> None:
    indices = torch.tensor([0, 1, 77, 2**31, 2**32 - 1])
    words = rng.words(seed, rng.Stream.POSTERIOR, step, indices, num_words)
    assert words.dtype == torch.int64
    traced = rng.words(seed, rng.Stream.POSTERIOR, step, indices.as_subclass(Traced), num_words)
    assert torch.equal(words, traced.as_subclass(torch.Tensor))
    assert len(set(words.flatten().tolist())) == words.numel()


@pytest.mark.parametrize("shape", [(3, 8, 8), (5,), (3, 7, 5)])
def test_an_index_gets_the_same_numbers_in_any_batch(shape: tuple[int, ...]) -> None:
    together = rng.normal(7, rng.Stream.NOISE, 5, torch.arange(10), shape)
    alone = torch.cat([rng.normal(7, rng.Stream.NOISE, 5, torch.tensor([index]), shape) for index in range(10)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("change", [{"seed": 8}, {"stream": rng.Stream.SAMPLE}, {"step": 6}, {"indices": torch.tensor([4])}])
def test_every_argument_changes_the_numbers(change: dict[str, object]) -> None:
    base: dict[str, object] = {"seed": 7, "stream": rng.Stream.NOISE, "step": 5, "indices": torch.tensor([3])}
    first = rng.normal(**base, shape=(64,))  # type: ignore[arg-type]
    other = rng.normal(**{**base, **change}, shape=(64,))  # type: ignore[arg-type]
    assert not torch.isclose(first, other).any()


def test_seeds_that_differ_only_in_their_high_word_differ() -> None:
    low, high = (rng.words(seed, rng.Stream.ORDER, 0, torch.arange(4), 4) for seed in (5, 5 + 2**32))
    assert not torch.equal(low, high)


def test_normal_numbers_are_standard_normal() -> None:
    drawn = rng.normal(0, rng.Stream.NOISE, 0, torch.arange(64), (4096,)).flatten().double().numpy()
    n = drawn.size
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert np.isfinite(drawn).all()
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(n)


def test_uniform_numbers_stay_inside_the_open_interval_and_coins_are_fair() -> None:
    drawn = rng.uniform(1, rng.Stream.TIME, 0, torch.arange(100_000), 1)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.005
    heads = rng.coin(1, rng.Stream.FLIP, 0, torch.arange(100_000)).double().mean()
    assert abs(float(heads) - 0.5) < 0.01
