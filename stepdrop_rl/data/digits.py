"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8 x 8 pixels, ten classes.

From the test part of the "Optical Recognition of Handwritten Digits" set of the UCI repository (Alpaydin
and Kaynak, 1998). Nothing is downloaded.
"""

from __future__ import annotations

import torch

from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import ImageData, Split

_LEVELS = 16  # the largest grey value of the set


def load(split: Split, source: DataConfig) -> ImageData:
    """Return 1,198 (``train``) or 599 (``judge``: every third) images (N, 1, 8, 8); they are embedded."""
    del source
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    grey = torch.as_tensor(digits.images).mul(255 / _LEVELS).round().to(torch.uint8)
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    is_judges = torch.arange(len(grey)) % 3 == 2
    chosen = is_judges if split == "judge" else ~is_judges
    return ImageData(grey[chosen].unsqueeze(1), labels[chosen])
