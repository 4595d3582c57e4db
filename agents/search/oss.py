"""OSS, optimal steps (Pei et al. 2025, arXiv 2503.21774): dynamic programming on the teacher's error.

z[k][j] is the state at grid point j after k evaluations that comes nearest to the teacher's own x[j]; its
predecessor is the best of all earlier points. Jumps are of order 1, whatever the solver that will run the
schedule; the last evaluation gives the clean estimate, and may stand anywhere.
Shapes: G grid points; B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.search.base import Found, Ground, Trajectory, require_points

GRID = 50
NUM_IMAGES = 64
ORACLE_IMAGES = 1024


def teacher_of(ground: Ground, num_images: int) -> Trajectory:
    """The pass through all of the grid, whose results are wanted."""
    times = torch.linspace(ground.t_start, ground.t_end, GRID, dtype=torch.float64)
    return ground.trajectory(times, num_images)


def per_sample_paths(nfe: int, ground: Ground, teacher: Trajectory) -> tuple[Tensor, Tensor]:
    """Every sample's own best path: (B, nfe) grid indices, (B,) errors of the result.

    An upper bound of what looking at the sample can bring, and what a policy can be cloned from.
    """
    return _programme(nfe, ground, teacher, shared=False)


def _programme(nfe: int, ground: Ground, teacher: Trajectory, *, shared: bool) -> tuple[Tensor, Tensor]:
    times, batch = teacher.times, teacher.x.shape[1]
    rows = torch.arange(batch)
    # State of each (grid point, sample) after k evaluations, and the clean estimate that was seen there.
    x = teacher.x[:1].expand(GRID, -1, -1, -1, -1).clone()
    x0 = teacher.x0[:1].expand(GRID, -1, -1, -1, -1).clone()
    reached = torch.zeros(GRID, dtype=torch.bool)
    reached[0] = True
    parents: list[Tensor] = []
    for _ in range(nfe - 1):
        error = torch.full((GRID, GRID, batch), torch.inf, dtype=torch.float64)  # from r to j
        for r in range(GRID - 1):
            if not reached[r]:
                continue
            for j in range(r + 1, GRID):
                landed = ground.jump(x[r], x0[r], times[r].expand(batch), times[j].expand(batch))
                error[r, j] = (landed - teacher.x[j]).double().flatten(1).square().mean(1)
        if shared:
            error = error.mean(2, keepdim=True).expand(-1, -1, batch)
        parent = error.argmin(0)  # (G, B)
        now = torch.isfinite(error.min(0).values).all(1)
        new_x, new_x0 = x.clone(), x0.clone()
        for j in range(1, GRID):
            if now[j]:
                origin = parent[j]
                new_x[j] = ground.jump(
                    x[origin, rows], x0[origin, rows], times[origin], times[j].expand(batch)
                )
                new_x0[j] = ground.clean(new_x[j], times[j].expand(batch))
        x, x0, reached = new_x, new_x0, now
        parents.append(parent)
    result = (x0 - teacher.end).double().flatten(2).square().mean(2)  # (G, B)
    result[~reached] = torch.inf
    if shared:
        result = result.mean(1, keepdim=True).expand(-1, batch)
    error, last = result.min(0)
    path = [last]
    for parent in reversed(parents):
        path.append(parent[path[-1], rows])
    return torch.stack(path[::-1], 1), error


def search(nfe: int, ground: Ground, seed: int) -> Found:
    """Return the one schedule of ``nfe`` evaluations whose results are nearest to the teacher's."""
    del seed
    require_points("oss", nfe, GRID)
    teacher = teacher_of(ground, NUM_IMAGES)
    paths, error = _programme(nfe, ground, teacher, shared=True)
    return Found(teacher.times[paths[0]].tolist(), float(error[0]))


def search_per_sample(nfe: int, ground: Ground, seed: int) -> Found:
    """Return the own best schedule of each of :data:`ORACLE_IMAGES` noises: a bound on looking.

    ``shared`` is what the schedule of :func:`search` is worth to the same noises, by the same measure.
    """
    require_points("oss_oracle", nfe, GRID)
    teacher = teacher_of(ground, ORACLE_IMAGES)
    paths, errors = per_sample_paths(nfe, ground, teacher)
    schedules = tuple(teacher.times[path].tolist() for path in paths)
    alike = torch.tensor(search(nfe, ground, seed).times, dtype=torch.float64)
    missed = ground.trajectory(alike, ORACLE_IMAGES).end - teacher.end
    shared = float(missed.double().square().mean())
    return Found(schedules[0], float(errors.mean()), per_image=schedules, shared=shared)
