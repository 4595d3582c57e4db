"""The least price, height or tolerance that is enough: by halving an interval again and again."""

from __future__ import annotations

from collections.abc import Callable


def bisect(too_low: Callable[[float], bool], low: float, high: float, halvings: int) -> tuple[float, float]:
    """Narrow (low, high) around where ``too_low``, true and then false, changes.

    What is returned at the low end is too low or the given ``low``, at the high end enough or the given
    ``high``.
    """
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return low, high
