"""Timings that can be trusted: interleaved, medians, ratios pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def interleaved(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of their ratios pair by pair: drift hits both alike."""
    first(), second()  # warm
    pairs = []
    for _ in range(repeats):
        seconds = []
        for call in (first, second):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        pairs.append(seconds)
    a, b = zip(*pairs, strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in pairs)
