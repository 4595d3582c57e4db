"""Image grids as arrays. Shapes: images (M, C, H, W) float32 in [−1, 1]; grids (H', W', 3) uint8."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stepdrop_rl.data import to_uint8

_MIN_SIDE = 32  # small images are enlarged, pixel by pixel, to be seen at all


def image_grid(images: Tensor, columns: int | None = None, pad: int = 2) -> NDArray[np.uint8]:
    """Lay images out in rows of ``columns`` (default: about a square), on white."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    pixels = to_uint8(images.detach().cpu())
    scale = max(1, math.ceil(_MIN_SIDE / pixels.shape[-1]))
    pixels = nn.functional.interpolate(pixels.float(), scale_factor=scale, mode="nearest")
    count, channels, height, width = pixels.shape
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), 255, dtype=np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8)):
        top, left = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        grid[top : top + height, left : left + width] = (
            np.broadcast_to(image, (height, width, 3)) if (channels == 1) else image
        )
    return grid
