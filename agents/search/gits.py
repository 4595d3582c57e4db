"""GITS (Chen et al. 2024, arXiv 2405.11326): the geometry of trajectories, by dynamic programming.

In coordinates x/α over σ/α a trajectory leaves the chord from its start to its end and comes back, alike for
all samples. The cost of a step i → j is how much farther from the chord one Euler jump lands than the
teacher's own point j; the path of K nodes with the least cost is kept. Jumps and teacher are of order 1,
whatever the solver that will run the schedule. Shapes: G grid points; B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.search.base import Found, Ground, require_points

GRID = 61
NUM_IMAGES = 256
RATIO = 1.15  # weight of the cost that is still to come


def costs(x: Tensor, eps: Tensor, rho: Tensor) -> Tensor:
    """(G, G) cost of a jump i → j > i, mean over samples; +inf elsewhere.

    Args:
        x: (G, B, D) points x/α.
        eps: (G, B, D) noise there.
        rho: (G,) σ/α, falling.
    """
    start, end = x[0], x[-1]
    direction = torch.nn.functional.normalize(end - start, dim=-1)

    def deviation(point: Tensor) -> Tensor:
        offset = point - start
        along = (offset * direction).sum(-1, keepdim=True) * direction
        return (offset - along).norm(dim=-1)

    own = torch.stack([deviation(point) for point in x])  # (G, B)
    table = torch.full((len(rho), len(rho)), torch.inf, dtype=torch.float64)
    for i in range(len(rho) - 1):
        for j in range(i + 1, len(rho)):
            landed = x[i] + (rho[j] - rho[i]) * eps[i]
            table[i, j] = (deviation(landed) - own[j]).double().mean()
    return table


def cheapest_path(table: Tensor, nodes: int, ratio: float = RATIO) -> tuple[list[int], float]:
    """The path of ``nodes`` grid points from the first to the last with the least cost, and that cost.

    ``best[k][i]`` = cheapest way from i to the end in k jumps = min_j table[i, j] + ratio·best[k − 1][j].
    """
    size = len(table)
    best = torch.full((size,), torch.inf, dtype=torch.float64)
    best[-1] = 0.0
    choices = []
    for _ in range(nodes - 1):
        through = table + ratio * best.unsqueeze(0)
        best, choice = through.min(1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path, float(best[0])


def search(nfe: int, ground: Ground, seed: int) -> Found:
    """Return the schedule of ``nfe`` evaluations between the model's ends."""
    del seed
    require_points("gits", nfe, GRID)
    if nfe == 1:
        return Found([ground.t_start], 0.0)
    times = torch.linspace(ground.t_start, ground.t_end, GRID, dtype=torch.float64)
    seen = ground.trajectory(times, NUM_IMAGES)
    lam = ground.scale.lam(times)
    alpha = torch.sigmoid(2 * lam).sqrt().reshape(-1, 1, 1)
    rho = torch.exp(-lam)
    x = seen.x.flatten(2).double() / alpha
    eps = (x - seen.x0.flatten(2).double()) / rho.reshape(-1, 1, 1)
    path, cost = cheapest_path(costs(x, eps, rho), nfe)
    return Found([float(times[i]) for i in path], cost)
