"""MNIST and Fashion-MNIST: grey 28 x 28 images of ten classes, padded with black to 32 x 32.

32 halves five times; 28 only twice. Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten
digits"; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST" (arXiv 1708.07747).
"""

from __future__ import annotations

from torch import nn
from torchvision import datasets

from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import ImageData, Split
from stepdrop_rl.data.official import open_official

_PADDING = 2  # pixels on every side


def load_mnist(split: Split, source: DataConfig) -> ImageData:
    """Return 60,000 (``train``) or 10,000 (``judge``) handwritten digits (N, 1, 32, 32)."""
    return _load("MNIST", datasets.MNIST, split, source)


def load_fashion_mnist(split: Split, source: DataConfig) -> ImageData:
    """Return 60,000 (``train``) or 10,000 (``judge``) pictures of clothes (N, 1, 32, 32)."""
    return _load("Fashion-MNIST", datasets.FashionMNIST, split, source)


def _load(title: str, kind: type[datasets.MNIST], split: Split, source: DataConfig) -> ImageData:
    data = open_official(
        title, source, lambda folder, download: kind(folder, train=split == "train", download=download)
    )
    return ImageData(nn.functional.pad(data.data.unsqueeze(1), (_PADDING,) * 4), data.targets.long())
