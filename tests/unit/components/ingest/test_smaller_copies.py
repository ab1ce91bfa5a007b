"""Smaller copies are found by their hashes, nearly all of them, and nothing else is."""

import numpy as np

from components.ingest.dataset.smaller_copies import find_smaller


def test_copies_with_a_few_other_bits_are_found_and_strangers_are_not() -> None:
    random = np.random.default_rng(0)
    originals = random.integers(0, 2**63, 20_000, dtype=np.uint64)
    copies = originals[:3000].copy()
    for copy in range(3000):
        for bit in random.choice(64, size=copy % 4, replace=False):
            copies[copy] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate((copies, originals))
    pixels = np.concatenate((np.full(3000, 100 * 100), np.full(20_000, 512 * 512)))
    found = find_smaller(hashes, pixels)
    assert all(large == small + 3000 for small, large in found.items())
    assert len(found) > 0.95 * 3000


def test_images_of_one_size_and_even_ones_are_copies_of_nothing() -> None:
    same = np.full(50, 0xF0F0F0F0F0F0F0F0, dtype=np.uint64)
    assert find_smaller(same, np.full(50, 1000)) == {}
    assert find_smaller(np.zeros(50, dtype=np.uint64), np.arange(1, 51) * 1000) == {}
    assert find_smaller(same[:1], np.array([5])) == {}
    assert len(find_smaller(same, np.arange(1, 51) * 1000)) > 40
