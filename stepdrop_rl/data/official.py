"""Sets that torchvision reads: checked against their published checksums, fetched where that is allowed.

The official training part is the split ``train``, the official test part the split ``judge``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.errors import UserError
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data.base import folder_of


def open_official(title: str, source: DataConfig, make: Callable[[Path, bool], Any]) -> Any:
    """Return ``make(folder, download)``, torchvision's data set; nothing is fetched that is there.

    Raises:
        UserError: The files are missing or damaged and may not, or cannot, be fetched.
    """
    folder = folder_of(source)
    try:
        return make(folder, False)
    except (RuntimeError, OSError):  # torchvision: "not found or corrupted"
        advice = f"{title} is not in {folder}: give its folder by --data.root or STEPDROP_DATA"
    if not source.download:
        raise UserError(f"{advice}, or allow --data.download true")
    try:
        return make(folder, True)
    except Exception as error:  # no network, a changed address, a full disk: torchvision raises many kinds
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{advice} (it could not be fetched: {reason})") from error
