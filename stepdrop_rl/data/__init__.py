"""Real images by name and split."""

from stepdrop_rl.data.base import (
    DATASETS,
    SHAPES,
    SPLITS,
    ImageData,
    Loader,
    Split,
    as_files,
    folder_of,
    load,
    to_float,
    to_uint8,
)

__all__ = [
    "DATASETS",
    "SHAPES",
    "SPLITS",
    "ImageData",
    "Loader",
    "Split",
    "as_files",
    "folder_of",
    "load",
    "to_float",
    "to_uint8",
]
