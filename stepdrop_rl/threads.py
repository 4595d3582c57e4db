"""How many threads a network is best called with on this CPU: measured once, kept, used from then on.

A tiny network on many cores is often faster with fewer of them. ``benchmark --parts [cpu]`` measures.
"""

from __future__ import annotations

from pathlib import Path

import torch

from envs.errors import UserError
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.weights import read_json, write_json


def keep_threads(model_hash: str, threads: int) -> Path:
    """Remember the best number for these weights on this machine."""
    return write_json(_file(model_hash), {"threads": threads})


def use_kept_threads(model_hash: str) -> None:
    """Let torch use that number, but never more threads than it was given; without a measurement nothing."""
    path = _file(model_hash)
    if not path.is_file():
        return
    try:
        threads = int(read_json(path)["threads"])
    except (UserError, KeyError, TypeError, ValueError):  # it is only a cache
        return
    if 1 <= threads < torch.get_num_threads():
        torch.set_num_threads(threads)


def _file(model_hash: str) -> Path:
    return cache_folder("threads") / f"{model_hash}.json"
