"""Any folder of images, one folder per class: ``ROOT/cat/1.png``, ``ROOT/dog/2.jpg``, ...

With ``ROOT/train`` and ``ROOT/test`` these are the splits; else every tenth image, in order of the names,
is the judge's. Images are cropped to the square in their middle.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from envs.errors import UserError
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import ImageData, Split, folder_of
from stepdrop_rl.data.decoding import decode

_SIZE = 32
_JUDGE_EVERY = 10


def load(split: Split, source: DataConfig) -> ImageData:
    """Return the images of a split as (N, 3, S, S), S = ``source.size`` or 32."""
    root = folder_of(source)
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    folder = root / ("train" if split == "train" else "test") if has_splits else root
    try:
        found = datasets.ImageFolder(str(folder)).samples
    except (OSError, RuntimeError) as error:  # no folder, no class folder, or a class without images
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder} is no folder of class folders of images (--data.root or STEPDROP_DATA): {reason}"
        ) from error
    if not has_splits:
        found = [pair for i, pair in enumerate(found) if (i % _JUDGE_EVERY == 0) == (split == "judge")]
    if not found:
        raise UserError(f"{folder} has no images for the split '{split}'")
    paths, labels = zip(*found, strict=True)
    images = decode(
        [Path(path) for path in paths], size=source.size or _SIZE, crop=_middle, description="image_folder"
    )
    return ImageData(images, torch.tensor(labels, dtype=torch.int64))


def _middle(image: torch.Tensor) -> torch.Tensor:
    side = min(image.shape[-2:])
    return transforms.center_crop(image, [side, side])
