"""Skipping by predicted error: evaluate once the jump from the last evaluation would err too much.

What counts as too much, the tolerance, is found for a budget on validation noise (see ``calibrated``). A
sample that was evaluated only once shows no error yet: it is evaluated again after an even share of the lams.
Shapes: R samples, observed as :mod:`envs.observation` says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.base import Budget
from envs.observation import ENTRIES

_COLUMN = {entry.name: number for number, entry in enumerate(ENTRIES)}
_ONE_AND_A_HALF = 1.5  # evaluations, between one and two


class Adaptive:
    """Evaluates where ``error(observation)`` reaches the tolerance.

    Args:
        name: How tables call it.
        error: Observations (R, D) to predicted errors (R,).
        budget: What it is to spend on average.
    """

    observes = True
    times: Tensor | None = None

    def __init__(self, name: str, error: Callable[[Tensor], Tensor], budget: Budget) -> None:
        self.name = name
        self.error = error
        self.budget = budget
        self.tolerance = 0.0

    def probabilities(self, observation: Tensor) -> Tensor:
        """1 where it evaluates, else 0."""
        evaluations = observation[:, _COLUMN["evaluations"]] * self.budget.num_decisions
        since = observation[:, _COLUMN["lam_since_anchor"]]
        once = evaluations < _ONE_AND_A_HALF
        due = torch.where(
            once, since >= 1 / max(self.budget.nfe, 1.0), self.error(observation) >= self.tolerance
        )
        return (due & (self.budget.nfe > 1)).to(observation.dtype)


def _disagreement(observation: Tensor) -> Tensor:
    """Distance of the order-1 and order-2 jumps: a local truncation error, in x."""
    return observation[:, _COLUMN["disagreement"]]


def _change(observation: Tensor) -> Tensor:
    """Change of x0_hat to be expected since the anchor, at the rate that was last seen."""
    return observation[:, _COLUMN["x0_rate"]] * observation[:, _COLUMN["lam_since_anchor"]]


def adaptive_error(budget: Budget) -> Adaptive:
    """Evaluate where the order-1 and order-2 jumps disagree by the tolerance."""
    return Adaptive("adaptive_error", _disagreement, budget)


def adaptive_change(budget: Budget) -> Adaptive:
    """Evaluate where the clean estimate is expected to have changed by the tolerance."""
    return Adaptive("adaptive_change", _change, budget)


def calibrated(agent: Adaptive, spent: Callable[[Adaptive], float], halvings: int = 14) -> Adaptive:
    """Set the smallest tolerance at which ``spent(agent)``, mean evaluations, keeps to the budget."""
    low, high = 0.0, 1.0
    agent.tolerance = high
    while spent(agent) > agent.budget.nfe and high < 1e3:
        low, high = high, 4 * high
        agent.tolerance = high
    for _ in range(halvings):
        agent.tolerance = (low + high) / 2
        low, high = (agent.tolerance, high) if spent(agent) > agent.budget.nfe else (low, agent.tolerance)
    agent.tolerance = high
    return agent
