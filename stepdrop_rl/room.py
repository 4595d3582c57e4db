"""Room for many images: on disk where they would take much memory.

50,000 colour images of 32×32 are 154 MB as a file would hold them, 614 MB as the sampler draws them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError

MOST_IN_MEMORY = 2**24  # bytes


def room_for(shape: Sequence[int], most_in_memory: int = MOST_IN_MEMORY) -> Tensor:
    """uint8 zeros of ``shape``, beyond ``most_in_memory`` bytes in a temporary file that ends with them.

    Raises:
        UserError: The disk has no room for them.
    """
    size = math.prod(shape)
    if size <= most_in_memory:
        return torch.zeros(*shape, dtype=torch.uint8)
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is noticed here, not by a signal later
                os.posix_fallocate(file.fileno(), 0, size)
            mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=(size,))
        except OSError as error:
            raise UserError(
                f"no room for {size / 1e6:,.0f} MB of images in {tempfile.gettempdir()}: {error.strerror} "
                "(set TMPDIR to another folder)"
            ) from None
    return torch.from_numpy(mapped).reshape(*shape)
