"""Fixed schedules: the same times for every sample, run unrounded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from agents.base import Budget
from envs.errors import UserError

_NOTHING = 0.01  # of an evaluation: too little to buy a whole one
SCHEDULE_SCHEMA = "stepdrop_rl.schedule/1"


class FixedSchedule:
    """Evaluates every sample at every one of its own times.

    Args:
        name: How tables call it.
        times: (K,) real times, descending.
        solver: The solver they were made for, or None.
        network_times: (K,) what the network is told instead of the times, or None.
    """

    observes = False

    def __init__(
        self, name: str, times: Tensor, solver: str | None = None, network_times: Tensor | None = None
    ) -> None:
        self.name = name
        self.solver = solver
        self.times: Tensor | None = times.double()
        self.network_times = None if network_times is None else network_times.double()

    def probabilities(self, observation: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones(len(observation), device=observation.device)


def steps(budget: Budget) -> Tensor:
    """K points from 0 to 1, K the budget rounded up: a baseline is not given less than the policy."""
    count = max(1, math.ceil(budget.nfe - _NOTHING))
    return torch.linspace(0, 1, count, dtype=torch.float64)


def uniform(budget: Budget) -> FixedSchedule:
    """Evenly spaced times, both ends included."""
    return FixedSchedule("uniform", budget.t_start + (budget.t_end - budget.t_start) * steps(budget))


def quadratic(budget: Budget) -> FixedSchedule:
    """Times whose square roots are evenly spaced (Song et al. 2021, appendix D.3): denser near the end."""
    root_start, root_end = math.sqrt(budget.t_start), math.sqrt(budget.t_end)
    times = (root_start + (root_end - root_start) * steps(budget)) ** 2
    return FixedSchedule("quadratic", times.clamp(budget.t_end, budget.t_start))


def log_snr(budget: Budget) -> FixedSchedule:
    """Times evenly spaced in half log-SNR (Lu et al. 2022, DPM-Solver, section 3.3), both ends included."""
    assert budget.scale is not None, "spacing by noise needs the model's noise schedule"
    start, end = budget.scale.lam(torch.tensor([budget.t_start, budget.t_end], dtype=torch.float64)).tolist()
    times = budget.scale.time_of(start + (end - start) * steps(budget))
    return FixedSchedule("log_snr", times.clamp(budget.t_end, budget.t_start))


def trailing(budget: Budget) -> FixedSchedule:
    """Even strides from the start; the last stride leads to the clean image (Lin et al. 2024, section 3.3).

    The end of the model's grid plays no part: K evaluations end at t_start/K.
    """
    count = len(steps(budget))
    return FixedSchedule("trailing", budget.t_start * (1 - torch.arange(count, dtype=torch.float64) / count))


def leading(budget: Budget) -> FixedSchedule:
    """Even strides that end at the grid's end, the first of them left out: diffusers' "leading" spacing."""
    count = len(steps(budget))
    stride = (budget.t_start - budget.t_end) / count
    times = budget.t_end + stride * torch.arange(count - 1, -1, -1, dtype=torch.float64)
    return FixedSchedule("leading", times)


def karras(budget: Budget, rho: float = 7.0) -> FixedSchedule:
    """Times whose (σ/α)^{1/ρ} are evenly spaced (Karras et al. 2022, eq. 5), both ends included."""
    assert budget.scale is not None, "spacing by noise needs the model's noise schedule"
    ends = torch.tensor([budget.t_start, budget.t_end], dtype=torch.float64)
    first, last = torch.exp(-budget.scale.lam(ends) / rho).tolist()
    root = first + (last - first) * steps(budget)
    times = budget.scale.time_of(-rho * torch.log(root))
    return FixedSchedule("karras", times.clamp(budget.t_end, budget.t_start))


def read_schedule(path: Path) -> FixedSchedule:
    """Read a schedule file, ``{schema, solver, times[, network_times]}``; :class:`UserError` if damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        times = torch.tensor([float(t) for t in raw["times"]], dtype=torch.float64)
        schema, solver, told = raw["schema"], raw.get("solver"), raw.get("network_times")
        network_times = None if told is None else torch.tensor([float(t) for t in told], dtype=torch.float64)
    except OSError as error:
        raise UserError(f"cannot read schedule {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"schedule {path} is damaged: it needs 'schema' and a list of numbers 'times'"
        ) from None
    if schema != SCHEDULE_SCHEMA:
        raise UserError(f"schedule {path} has schema '{schema}', this version reads '{SCHEDULE_SCHEMA}'")
    if len(times) == 0 or bool((times.diff() >= 0).any()):
        raise UserError(f"schedule {path}: times must descend")
    if network_times is not None and not (
        len(network_times) == len(times) and bool(torch.isfinite(network_times).all())
    ):
        raise UserError(f"schedule {path}: network_times must be as many numbers as times")
    return FixedSchedule(path.name, times, None if solver is None else str(solver), network_times)
