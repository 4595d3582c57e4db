"""Chance: evaluate by the flip of a coin, sample by sample and point by point."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.base import Budget


class Bernoulli:
    """Skips with the same probability everywhere on the decision grid.

    Args:
        p_skip: Probability of skipping.
    """

    name = "bernoulli"
    times: Tensor | None = None
    observes = False

    def __init__(self, p_skip: float) -> None:
        self.p_skip = p_skip

    def probabilities(self, observation: Tensor) -> Tensor:
        """1 − p_skip everywhere."""
        return torch.full((len(observation),), 1 - self.p_skip, device=observation.device)


def bernoulli(budget: Budget) -> Bernoulli:
    """Spend the budget on average: 1 + (N − 1)·(1 − p_skip) evaluations."""
    rate = (budget.nfe - 1) / max(budget.num_decisions - 1, 1)
    return Bernoulli(p_skip=1 - min(max(rate, 0.0), 1.0))
