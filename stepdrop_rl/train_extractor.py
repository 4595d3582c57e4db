"""Train a small classifier whose several-depth features reward, validate or judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
