"""What a data set is: a name, two splits, uint8 images with labels.

Shapes: N images of C channels, H x W pixels. Images at rest are uint8 in 0..255; networks see float32 in
[-1, 1]. A new data set is one module with ``load(split, source)`` and one line in :data:`DATASETS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from envs.errors import UserError
from envs.registry import Registry, unknown_name
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.config import DataConfig

Split = Literal["train", "judge"]
"""``train``: what diffusion training, rewards and the validation judge may see; ``judge``: what the judge's
network and reference are made of. The two share no image."""

SPLITS: tuple[Split, ...] = get_args(Split)
ROOT_VARIABLE = "STEPDROP_DATA"


@dataclass(frozen=True)
class ImageData:
    """Real images: ``images`` (N, C, H, W) uint8 and ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8, "images at rest are uint8"
        assert self.images.dim() == 4, "images are (N, C, H, W)"
        assert self.labels.dtype == torch.int64, "labels are int64"
        assert self.labels.shape == self.images.shape[:1], "one label per image"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes, labelled 0 .. num_classes - 1."""
        return int(self.labels.max()) + 1


class Loader(Protocol):
    """A data set's ``load``: its images of one split."""

    def __call__(self, split: Split, source: DataConfig) -> ImageData: ...


DATASETS = Registry(
    "data set",
    {
        "digits": "stepdrop_rl.data.digits:load",
        "mnist": "stepdrop_rl.data.mnist:load_mnist",
        "fashion_mnist": "stepdrop_rl.data.mnist:load_fashion_mnist",
        "cifar10": "stepdrop_rl.data.cifar10:load",
        "celeba": "stepdrop_rl.data.celeba:load",
        "image_folder": "stepdrop_rl.data.image_folder:load",
    },
)

SHAPES: dict[str, tuple[int, int | None]] = {
    "digits": (1, 8),
    "mnist": (1, 32),
    "fashion_mnist": (1, 32),
    "cifar10": (3, 32),
    "celeba": (3, None),
    "image_folder": (3, None),
}
"""Channels and pixels per side (None: as ``source.size`` says), known before anything is read."""


def load(source: DataConfig, split: str) -> ImageData:
    """Return one split (``train`` or ``judge``) of the data set ``source.name``.

    Raises:
        UserError: There is no such data set or split, or its files cannot be had.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    loader: Loader = DATASETS.load(source.name)
    return loader(split, source)


def folder_of(source: DataConfig) -> Path:
    """Where a set that is not embedded lies: ``source.root``, else ``$STEPDROP_DATA``, else a cache."""
    folder = source.root or os.environ.get(ROOT_VARIABLE)
    return Path(folder) if folder else cache_folder("data")


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]; others as they are."""
    return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images


def as_files(images: Tensor) -> Tensor:
    """:func:`to_uint8` of images that a sampler drew.

    Raises:
        UserError: Some hold NaN.
    """
    if images.is_floating_point():
        damaged = int(images.isnan().flatten(1).any(dim=1).sum())
        if damaged:
            raise UserError(f"{damaged} of {len(images)} images hold NaN: their sampler diverged")
    return to_uint8(images)


def to_uint8(images: Tensor) -> Tensor:
    """Images as a file would hold them: floats clamped to [-1, 1] and rounded. Undoes :func:`to_float`."""
    if images.dtype == torch.uint8:
        return images
    return ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
