"""Choosing the ends of a model's grid, ``t_start`` and ``t_end``, on validation noise.

They matter more than the number of steps: too noisy a start wastes evaluations where x0_hat is clipped
guesswork, too late an end asks the network where it was hardly trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.fixed import FixedSchedule
from envs.philox import Role
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.solvers import make_solver

# Half log-SNR where a grid may begin and end: alpha² from 2e-2 to 1e-4, sigma² from 1e-1 to 1e-3.
START_LAMS = (-2.0, -2.5, -3.0, -3.5, -4.0, -4.6)
END_LAMS = (1.2, 1.6, 2.0, 2.5, 3.0, 3.5)
NUM_EVALUATIONS = 50
NUM_IMAGES = 1024
# Distances this near the smallest count as equal; the narrower grid wins: few evaluations go further on it.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Ends:
    """A pair of ends and the distance that the full trajectory between them scored."""

    t_start: float
    t_end: float
    distance: float


def default_ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """Ends for a model that was not measured yet: half log-SNR −3.5 and 2.5."""
    t = schedule.time_of(torch.tensor([-3.5, 2.5], dtype=torch.float64))
    return float(t[0]), float(t[1])


def choose_ends(
    denoiser: Denoiser,
    distance: Callable[[Tensor], float],
    *,
    seed: int,
    num_images: int = NUM_IMAGES,
    progress: Callable[[Ends], None] | None = None,
) -> Ends:
    """Return the narrowest pair whose full trajectory scores about the smallest ``distance``.

    Coordinate search from the default pair: the best start for its end, the best end for that start, and
    the best start again; each candidate draws the same ``num_images`` validation noises.
    """
    schedule = denoiser.schedule
    measured: dict[tuple[float, float], Ends] = {}

    def measure(start: float, end: float) -> Ends:
        if (start, end) not in measured:
            lams = torch.tensor([start, end], dtype=torch.float64)
            t_start, t_end = (round(float(t), 1) for t in schedule.time_of(lams))
            times = torch.linspace(t_start, t_end, NUM_EVALUATIONS, dtype=torch.float64)
            engine = Engine(
                denoiser=denoiser,
                solver=make_solver("multistep"),
                times=times,
                seed=seed,
                role=Role.VALIDATION,
            )
            images = engine.sample(FixedSchedule("full", times), num_images).images
            measured[start, end] = Ends(t_start, t_end, distance(images))
            if progress is not None:
                progress(measured[start, end])
        return measured[start, end]

    start, end = -3.5, 2.5
    start = _narrowest({lam: measure(lam, end).distance for lam in START_LAMS})
    end = _narrowest({lam: measure(start, lam).distance for lam in END_LAMS})
    start = _narrowest({lam: measure(lam, end).distance for lam in START_LAMS})
    return measure(start, end)


def _narrowest(distances: dict[float, float]) -> float:
    """The first candidate (they go from narrow to wide) that is as good as the best."""
    best = min(distances.values())
    return next(lam for lam, value in distances.items() if value <= best * (1 + TOLERANCE))
