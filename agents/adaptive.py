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
_USED = 0.995  # of the budget
_HIGHEST = 1e3  # tolerance


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
    """Change of x0_hat to be expected since the anchor, at the rate last seen, over the range of lam."""
    return observation[:, _COLUMN["x0_rate"]] * observation[:, _COLUMN["lam_since_anchor"]]


def _noise_change(budget: Budget) -> Callable[[Tensor], Tensor]:
    """Change of eps (RMS) to be expected since the anchor, at the rate that was last seen.

    An order-1 jump from t to s sets x_s = α_s·x0_t + σ_s·eps_t, so the call at s shows
    eps_s − eps_t = −(α_s/σ_s)·(x0_s − x0_t), and α/σ = e^lam: what a sample records of its clean estimates
    tells it. After jumps of a higher order, or with noise, it is that of the order-1 jump.
    """
    assert budget.scale is not None, "noise is told by the model's noise schedule"
    ends = torch.tensor([budget.t_start, budget.t_end], dtype=torch.float64)
    first, last = budget.scale.lam(ends).tolist()

    def change(observation: Tensor) -> Tensor:
        anchor = observation[:, _COLUMN["lam"]] - observation[:, _COLUMN["lam_since_anchor"]]
        return torch.exp(first + (last - first) * anchor) * (last - first) * _change(observation)

    return change


def adaptive_error(budget: Budget) -> Adaptive:
    """Evaluate where the order-1 and order-2 jumps disagree by the tolerance."""
    return Adaptive("adaptive_error", _disagreement, budget)


def adaptive_change(budget: Budget) -> Adaptive:
    """Evaluate where the clean estimate is expected to have changed by the tolerance."""
    return Adaptive("adaptive_change", _change, budget)


def adaptive_eps(budget: Budget) -> Adaptive:
    """Evaluate where the predicted noise is expected to have changed by the tolerance."""
    return Adaptive("adaptive_eps", _noise_change(budget), budget)


def calibrated(agent: Adaptive, spent: Callable[[Adaptive], float], halvings: int = 14) -> Adaptive:
    """Set a tolerance at which ``spent(agent)``, mean evaluations, keeps to the budget and uses it.

    Every question is a pass through the model: no more are asked once :data:`_USED` of the budget is spent.
    """
    low, high = 0.0, 1.0

    def cost(tolerance: float) -> float:
        agent.tolerance = tolerance
        return spent(agent) / agent.budget.nfe

    while (share := cost(high)) > 1 and high < _HIGHEST:
        low, high = high, 4 * high
    while share < _USED and halvings:
        halvings -= 1
        middle = (low + high) / 2
        if (now := cost(middle)) > 1:
            low = middle
        else:
            high, share = middle, now
    agent.tolerance = high
    return agent
