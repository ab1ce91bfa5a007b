"""Mean and standard deviation of each colour channel.

Promises: sums are exact, so that the same images give the same values on every machine. The input is an image reduced by area to 32
pixels a side or a little more, as bytes from a worker; nothing is decoded here.
"""

from collections.abc import Sequence

Triple = tuple[float, float, float]
_SMALLEST_PX = 32
_DECIMALS = 6


def reduction_factor(image_px: int) -> int:
    """Return the factor that an image of this side is reduced by: a power of two, which decoders do fast."""
    return 1 << max(0, (image_px // _SMALLEST_PX).bit_length() - 1)


def colour_statistics(images: Sequence[bytes]) -> list[tuple[Triple, Triple]]:
    """Return mean and standard deviation in [0, 1] of each of `images`: RGB, 8 bits per channel, all of one size."""
    import numpy as np  # noqa: PLC0415 - commands that decode nothing import this module

    if not images:
        return []
    assert len({len(image) for image in images}) == 1, "all images of a dataset have one size, so their reduced versions have too"
    levels = np.frombuffer(b"".join(images), np.uint8).reshape(len(images), -1, 3)
    channels = levels.transpose(2, 0, 1).astype(np.uint16, order="C")
    count = channels.shape[2]
    mean = channels.sum(axis=2, dtype=np.uint64) / count
    mean_of_squares = np.square(channels, out=channels).sum(axis=2, dtype=np.uint64) / count
    std = np.sqrt(np.maximum(mean_of_squares - np.square(mean), 0))
    numbers = np.round(np.concatenate((mean, std)) / 255, _DECIMALS).T.tolist()
    return [((r, g, b), (sr, sg, sb)) for r, g, b, sr, sg, sb in numbers]
