"""Target-NFE samplers of StepDrop: how many evaluations is given, where they fall is by weight or by lot.

Both ends of the grid are protected: the first evaluation of a budget is at its start, the second at its end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agents.base import Budget
from agents.fixed import FixedSchedule, steps
from envs.observation import ENTRIES

_EVALUATIONS = [entry.name for entry in ENTRIES].index("evaluations")
_WHOLE = 1e-9  # a budget nearer than this to a whole number is that number
DATA_DEVIATION = 0.5  # of images in [−1, 1], as Karras et al. 2022 take it


def target_importance(budget: Budget) -> FixedSchedule:
    """Times at the quantiles of the root of DDIM's local error density, both ends included.

    A DDIM step of h in lam errs by α·h²/2·dD/dlam in x, D the clean estimate; Σ w·h² over K steps is least
    where their density is 1/h ∝ √w. For Gaussian data of deviation d everything is known: with
    r = e^lam = α/σ, D is d²r/√(d²r² + 1) times what stays constant on the way, its slope in lam
    d²r/(d²r² + 1)^{3/2}, and errors reach the end scaled by 1/√(α²d² + σ²). So

        √w ∝ r/(1 + d²r²), whose integral over lam is arctan(d·r)/d:

    the times are even in the angle arctan(d·α/σ), which is TrigFlow's time (Lu & Song 2025, arXiv
    2410.11081). With d = 1 and a cosine schedule they would be those of ``uniform``.
    """
    assert budget.scale is not None, "importance of times needs the model's noise schedule"
    ends = budget.scale.lam(torch.tensor([budget.t_start, budget.t_end], dtype=torch.float64))
    first, last = torch.atan(DATA_DEVIATION * torch.exp(ends)).tolist()
    angle = first + (last - first) * steps(budget)
    times = budget.scale.time_of(torch.log(torch.tan(angle) / DATA_DEVIATION))
    return FixedSchedule("target_importance", times.clamp(budget.t_end, budget.t_start))


def selection(num_points: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of ``num_points`` grid points, the first and (for count >= 2) the last among them.

    Selection sampling (Knuth, The Art of Computer Programming 2, section 3.4.2, algorithm S): with n points
    to go, of which m are still needed, take the next one with probability m/n; every set is as likely.

    Returns:
        ``take`` (N, N + 1), P(evaluate point i | e evaluations before it), and ``reach`` (N, N + 1), P(e).
    """
    take = torch.zeros(num_points, num_points + 1, dtype=torch.float64)
    reach = torch.zeros_like(take)
    take[0] = 1.0
    reach[0, 0] = 1.0
    protected = int(count >= 2)
    so_far = torch.arange(num_points + 1, dtype=torch.float64)
    for point in range(1, num_points):
        reach[point] = reach[point - 1] * (1 - take[point - 1])
        reach[point, 1:] += (reach[point - 1] * take[point - 1])[:-1]
        if point == num_points - 1:
            take[point] = float(protected)
        else:
            left = num_points - 1 - point
            take[point] = ((count - protected - so_far) / left).clamp(0, 1)
    return take, reach


class TargetStochastic:
    """Spends exactly as many evaluations on every sample as it was told to, at points drawn by lot.

    Selection sampling needs no memory: where a sample stands and how often it was evaluated say how likely
    the next point is, so the engine draws coins as for any agent. A budget of K + f buys K + 1 with
    probability f: how many a sample gets is never drawn, its probabilities are those of the mixture, given
    what was evaluated so far (Bayes).

    Args:
        budget: What to spend.
    """

    name = "target_stochastic"
    times: Tensor | None = None
    observes = True  # of the observation: where on the grid, and evaluations so far

    def __init__(self, budget: Budget) -> None:
        num_points = budget.num_decisions
        wanted = min(max(budget.nfe, 1.0), float(num_points))
        count = math.floor(wanted + _WHOLE)
        more = max(wanted - count, 0.0)
        take, reach = selection(num_points, count)
        if more > _WHOLE:
            other_take, other_reach = selection(num_points, count + 1)
            reach, other_reach = (1 - more) * reach, more * other_reach
            either = reach + other_reach
            mixed = (reach * take + other_reach * other_take) / either
            take = torch.where(either > 0, mixed, 0.0)
        self.num_points = num_points
        self.table = take

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,)."""
        point = (observation[:, 0] * (self.num_points - 1)).round().long()
        so_far = (observation[:, _EVALUATIONS] * self.num_points).round().long()
        return self.table.to(observation.device)[point, so_far].to(observation.dtype)
