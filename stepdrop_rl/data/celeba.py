"""CelebA: 202,599 aligned photographs of faces; the square of 148 pixels in the middle, made 64 x 64.

Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015; for non-commercial
research. The square of 148 pixels is what the field crops (DDIM, arXiv 2010.02502).
"""

from __future__ import annotations

from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import ImageData, Split, folder_of
from stepdrop_rl.data.decoding import decode
from stepdrop_rl.data.official import open_official

_CROP = 148
_SIZE = 64
_MALE, _SMILING = 20, 31  # columns of the table of attributes


def load(split: Split, source: DataConfig) -> ImageData:
    """Return 162,770 (``train``) or 19,962 (``judge``) faces (N, 3, 64, 64), or of ``source.size``.

    Classes, which extractors learn: man or woman, smiling or not (4).
    """
    data = open_official(
        "CelebA",
        source,
        lambda folder, download: datasets.CelebA(
            folder, split="train" if split == "train" else "test", target_type="attr", download=download
        ),
    )
    pictures = folder_of(source) / "celeba" / "img_align_celeba"
    images = decode(
        [pictures / name for name in data.filename],
        size=source.size or _SIZE,
        crop=lambda image: transforms.center_crop(image, [_CROP, _CROP]),
        description=f"celeba-{_CROP}",
    )
    return ImageData(images, 2 * data.attr[:, _MALE].long() + data.attr[:, _SMILING].long())
