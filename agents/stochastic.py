"""Chance: evaluate by the flip of a coin, sample by sample and point by point."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from agents.base import Budget
from agents.curves import SkipCurve
from agents.fixed import numbers
from envs.errors import UserError

SET = "bernoulli:p="  # begins the name of chance whose probabilities are given


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


def given_chance(name: str, num_decisions: int) -> SkipCurve:
    """Skip with given probabilities, whatever that spends: ``bernoulli:p=0.7`` or ``bernoulli:p=[0.2, 0.9]``.

    A list is spread evenly over the N points of the decision grid, linear in between; as many as there are
    points are a table. Both ends of the grid are protected.

    Raises:
        UserError: It is not a probability, nor a list of them.
    """
    try:
        told = json.loads(name.removeprefix(SET))
        p_skip = numbers(told if isinstance(told, list) else [told])
    except (ValueError, RecursionError):
        p_skip = []
    if not p_skip or not all(0 <= p <= 1 for p in p_skip):
        raise UserError(
            f"'{name:.60}': p needs a probability of skipping or a list of them, p=0.7 or p=[0.2, 0.9]"
        )
    places = np.linspace(0, 1, len(p_skip))
    rates = 1 - torch.from_numpy(np.interp(np.linspace(0, 1, num_decisions), places, p_skip))
    rates[[0, -1]] = 1.0
    return SkipCurve(name, rates)
