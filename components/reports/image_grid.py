"""Image grids for people: small images are enlarged, tiles are laid out in rows.

Promises: pure functions of the pixels. For viewing only; metrics are never computed from an enlarged image.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SAMPLE_GRID_KEY = "samples/ema_grid"
"""MLflow key of the grid of samples that a training logs."""
_TILE_PX = 128
_GAP_PX = 6
_LABEL_PX = 24


def enlarge(image: np.ndarray, tile_px: int = _TILE_PX, *, smooth: bool = True) -> np.ndarray:
    """Return an image (uint8, h x w x 3) smaller than `tile_px` at an integer multiple of its size; a larger one as it is.

    Without `smooth` each pixel becomes a square of its colour.
    """
    side = image.shape[0]
    factor = max(1, tile_px // side)
    if factor == 1:
        return image
    if not smooth:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(image).resize((side * factor, side * factor), Image.Resampling.LANCZOS))


def grid(tiles: list[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Lay out tiles of equal size in rows, `columns` wide (default: about square); missing ones at the end stay black."""
    columns = columns or int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[:2]
    canvas = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = tile
    return canvas


def pairs(matches: list[tuple[np.ndarray, np.ndarray]], labels: list[str], columns: int = 4) -> np.ndarray:
    """Lay out pairs of tiles of equal size, `columns` pairs wide on white, each with its label below."""
    tiles = [_label_tile(np.concatenate(match, axis=1), label) for match, label in zip(matches, labels, strict=True)]
    columns = min(columns, len(tiles))
    blank = np.full_like(tiles[0], 255)
    return grid([*tiles, *[blank] * (-len(tiles) % columns)], columns=columns)


def _label_tile(tile: np.ndarray, label: str) -> np.ndarray:
    height, width = tile.shape[:2]
    canvas = Image.new("RGB", (width + 2 * _GAP_PX, height + _LABEL_PX + _GAP_PX), "white")
    canvas.paste(Image.fromarray(tile), (_GAP_PX, _GAP_PX))
    ImageDraw.Draw(canvas).text((_GAP_PX, height + _GAP_PX + 3), label, "black", ImageFont.load_default(14))
    return np.asarray(canvas)


def png(image: np.ndarray) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
