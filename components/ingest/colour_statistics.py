"""The colours of images: mean and standard deviation of each channel.

Promises: exact sums, so that the same pictures give the same numbers on every machine. They are taken of an image scaled down by area, to
32 pixels a side or somewhat more. Pixels come as plain bytes from a worker; nothing is decoded here.
"""

from collections.abc import Sequence

Triple = tuple[float, float, float]
_SMALLEST_PX = 32
_DECIMALS = 6


def small_scale(image_px: int) -> int:
    """Return by how much an image of this side is scaled down: a power of two, which is what decoders do well."""
    return 1 << max(0, (image_px // _SMALLEST_PX).bit_length() - 1)


def colours(pictures: Sequence[bytes]) -> list[tuple[Triple, Triple]]:
    """Return mean and standard deviation in [0, 1] of each of `pictures`: RGB, 8 bits per channel, all of one size."""
    import numpy as np  # noqa: PLC0415 - the workers, which only make small pictures, start in half the time without it

    if not pictures:
        return []
    assert len({len(picture) for picture in pictures}) == 1, "the images of a data set are of one size, so their small ones are too"
    levels = np.frombuffer(b"".join(pictures), np.uint8).reshape(len(pictures), -1, 3)
    channels = levels.transpose(2, 0, 1).astype(np.uint16, order="C")
    count = channels.shape[2]
    mean = channels.sum(axis=2, dtype=np.uint64) / count
    mean_of_squares = np.square(channels, out=channels).sum(axis=2, dtype=np.uint64) / count
    std = np.sqrt(np.maximum(mean_of_squares - np.square(mean), 0))
    numbers = np.round(np.concatenate((mean, std)) / 255, _DECIMALS).T.tolist()
    return [((r, g, b), (sr, sg, sb)) for r, g, b, sr, sg, sb in numbers]
