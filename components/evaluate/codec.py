"""Image codec and random flips before feature extraction, as published protocols have them.

Promises: "png" changes nothing; "jpeg" writes and reads each image once with PIL's defaults (quality 75, 4:2:0); a flip is a function of
the image's index alone.
"""

import io

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from components.evaluate.protocol import JPEG_QUALITY
from components.features.names import Codec
from model import rng

Images = UInt8[Tensor, "b 3 h w"]
_FLIP_SEED, _FLIP_STEP = 0, 2**32 - 1  # a step that no training reaches


def through_codec(images: Images, codec: Codec) -> Images:
    """Return `images` as they are after being stored with `codec`."""
    if codec == "png":
        return images
    return torch.stack([torch.from_numpy(_jpeg(image)) for image in images.permute(0, 2, 3, 1).numpy()]).permute(0, 3, 1, 2)


def flipped_at_random(images: Images, indices: range) -> Images:
    """Mirror each image with probability one half, decided by its index."""
    return torch.where(_coins(indices)[:, None, None, None], images.flip(-1), images)


def is_flipped(index: int) -> bool:
    """Return whether `flipped_at_random` mirrors the image with this index."""
    return bool(_coins(range(index, index + 1)))


def _coins(indices: range) -> Bool[Tensor, " n"]:
    return rng.coin(_FLIP_SEED, rng.Stream.FLIP, _FLIP_STEP, torch.tensor(list(indices)))


def _jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.array(Image.open(buffer))
