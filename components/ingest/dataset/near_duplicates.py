"""Find near duplicates by perceptual hash.

Promises: the result depends on the images and not on their order in the source: the caller gives them from the largest to the smallest,
and in the order of their digests, and one that is near to an image that was kept is dropped. Two hashes that differ in at most k bits
agree in one of k + 1 parts, so only such pairs are compared. The hashes are held in memory, some hundred bytes for each image.
"""

from collections.abc import Iterable, Iterator

HASH_BITS = 64


def near_duplicates(images: Iterable[tuple[str, int]], *, bits: int) -> Iterator[tuple[str, str]]:
    """Yield (digest of a dropped image, digest of the kept one that it resembles).

    `images` are pairs (digest, 64-bit hash), those that are to be kept first; hashes are near if they differ in at most `bits` bits.
    """
    parts = bits + 1
    width = -(-HASH_BITS // parts)
    buckets: list[dict[int, list[tuple[str, int]]]] = [{} for _ in range(parts)]
    for sha256, phash in images:
        slots = [(bucket, phash >> (part * width) & ((1 << width) - 1)) for part, bucket in enumerate(buckets)]
        near = next((kept for bucket, slot in slots for kept, other in bucket.get(slot, ()) if (phash ^ other).bit_count() <= bits), None)
        if near is not None:
            yield sha256, near
            continue
        for bucket, slot in slots:
            bucket.setdefault(slot, []).append((sha256, phash))
