"""Image files as one array: decoded once, then kept in the cache.

Shapes: N files, S = size of the result: (N, 3, S, S) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from envs.errors import UserError
from stepdrop_rl.caches import cache_folder, key_of
from stepdrop_rl.weights import load_tensors, save_tensors


def decode(paths: Sequence[Path], *, size: int, crop: Callable[[Tensor], Tensor], description: str) -> Tensor:
    """Decode image files to (N, 3, size, size) uint8: cropped, then resized (bicubic, antialiased).

    Args:
        paths: N files of any format that Pillow reads.
        size: Pixels per side of the results.
        crop: Takes (3, H, W) uint8 and returns the square part to keep.
        description: Names ``crop``; with the files' names, sizes and dates it is the key of the cache.
    """

    def one(path: Path) -> Tensor:
        try:
            with Image.open(path) as file:
                square = crop(transforms.pil_to_tensor(file.convert("RGB")))
        except (OSError, SyntaxError) as error:  # Pillow says SyntaxError of some damaged files
            raise UserError(f"cannot read the image {path}: {error}") from error
        return transforms.resize(
            square, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
        )

    try:
        stats = [(path.name, (at := path.stat()).st_size, at.st_mtime_ns) for path in paths]
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from error
    key = key_of({"crop": description, "size": size, "files": stats, "folder": str(paths[0].parent)})
    kept = cache_folder("images") / f"{key}.safetensors"
    if kept.is_file():
        return load_tensors(kept)["images"]
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        images = torch.stack(list(pool.map(one, paths)))
    save_tensors(kept, {"images": images})
    return images
