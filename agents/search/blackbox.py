"""A plain search on the distance itself: an evolution strategy over the times.

The schedule starts at the model's start; its other times are free, the last one too. Gaps in lam are searched
in their logarithm by (1 + λ)-steps with a shrinking width around the best so far; all candidates draw the
same noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agents.search.base import Found, Ground, at_effort

NUM_IMAGES = 512
CANDIDATES = 96  # schedules tried
CHILDREN = 8  # per round
WIDTH, LAST_WIDTH = 0.5, 0.08  # of a step in the logarithm of a gap
_LAST_LAMS = (1.2, 1.8, 2.5)  # where the first candidates end


class Explored(NamedTuple):
    """Distance and times of the schedules tried, the best first; the best distance after each round."""

    ranked: list[tuple[float, list[float]]]
    trace: tuple[float, ...]


def _times(gaps: Tensor, ground: Ground, first: float, most: float) -> Tensor | None:
    """Times of log gaps (K − 1,) in lam; None where they leave the model's table."""
    lam = first + torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumsum(torch.exp(gaps), 0)))
    return None if float(lam[-1]) > most else ground.scale.time_of(lam)


def explore(nfe: int, ground: Ground, seed: int, candidates: int) -> Explored:
    """Try about ``candidates`` schedules of two evaluations or more on :data:`NUM_IMAGES` training noises."""
    start = torch.tensor([ground.t_start, 0.0], dtype=torch.float64)
    first, most = ground.scale.lam(start).tolist()
    generator = torch.Generator().manual_seed(seed)
    tried: list[tuple[float, Tensor, Tensor]] = []  # distance, times, log gaps

    def attempt(gaps: Tensor) -> None:
        times = _times(gaps, ground, first, most)
        if times is not None:
            tried.append((ground.distance(times, NUM_IMAGES), times, gaps))

    uniform = torch.linspace(0, 1, nfe, dtype=torch.float64)
    for last in _LAST_LAMS:
        end = float(ground.scale.time_of(torch.tensor([last], dtype=torch.float64)))
        even_times = ground.scale.lam(ground.t_start + (end - ground.t_start) * uniform).diff()
        even_lams = torch.full((nfe - 1,), (last - first) / (nfe - 1), dtype=torch.float64)
        attempt(even_times.log())
        attempt(even_lams.log())
    trace = [min(value for value, *_ in tried)]
    rounds = max(1, (candidates - len(tried)) // CHILDREN)
    for number in range(rounds):
        width = WIDTH * (LAST_WIDTH / WIDTH) ** (number / max(rounds - 1, 1))
        _, _, parent = min(tried, key=lambda one: one[0])
        for _ in range(CHILDREN):
            attempt(parent + width * torch.randn(nfe - 1, generator=generator, dtype=torch.float64))
        trace.append(min(value for value, *_ in tried))
    ranked = sorted(((value, times.tolist()) for value, times, _ in tried), key=lambda one: one[0])
    return Explored(ranked, tuple(trace))


def search(nfe: int, ground: Ground, seed: int, effort: float = 1.0) -> Found:
    """Return the best of :data:`CANDIDATES` × ``effort`` schedules."""
    if nfe == 1:
        only = torch.tensor([ground.t_start], dtype=torch.float64)
        return Found([ground.t_start], ground.distance(only, NUM_IMAGES))
    explored = explore(nfe, ground, seed, at_effort(CANDIDATES, effort))
    value, times = explored.ranked[0]
    return Found(times, value, trace=explored.trace)
