"""Small images are enlarged for people by integer factors."""

import numpy as np

from components.reports.image_grid import enlarge


def test_an_image_enlarged_without_smoothing_has_the_pixels_that_it_had() -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    larger = enlarge(image, smooth=False)
    assert larger.shape == (96, 96, 3), "the largest multiple of 48 within 128"
    assert all((larger[row::2, column::2] == image).all() for row in (0, 1) for column in (0, 1))
    assert enlarge(larger, smooth=False) is larger
