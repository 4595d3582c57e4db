"""CIFAR-10: colour photographs of 32 x 32 pixels, ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import torch
from torchvision import datasets

from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import ImageData, Split
from stepdrop_rl.data.official import open_official


def load(split: Split, source: DataConfig) -> ImageData:
    """Return 50,000 (``train``) or 10,000 (``judge``) images (N, 3, 32, 32)."""
    data = open_official(
        "CIFAR-10",
        source,
        lambda folder, download: datasets.CIFAR10(folder, train=split == "train", download=download),
    )
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageData(images, torch.tensor(data.targets, dtype=torch.int64))
