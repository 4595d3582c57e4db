"""Where things are kept that can be computed again: ``$STEPDROP_CACHE``, else ``~/.cache/stepdrop_rl``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HASH_DIGITS = 16


def cache_folder(kind: str) -> Path:
    """The folder of one kind of thing (not made yet)."""
    root = os.environ.get("STEPDROP_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "stepdrop_rl") / kind


def key_of(description: Mapping[str, Any]) -> str:
    """A name for what a description determines: 16 hex digits of its SHA-256."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
