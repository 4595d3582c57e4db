"""Fixed schedules: the same times for every sample, run unrounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        model_hash: Of the model they were made for, or None.
        orders: (K,) of the jumps to the times (the first one's is not used), or None: the solver's own.
    """

    observes = False

    def __init__(
        self,
        name: str,
        times: Tensor,
        solver: str | None = None,
        network_times: Tensor | None = None,
        model_hash: str | None = None,
        orders: Tensor | None = None,
    ) -> None:
        self.name = name
        self.solver = solver
        self.model_hash = model_hash
        self.times: Tensor | None = times.double()
        self.network_times = None if network_times is None else network_times.double()
        self.orders = orders

    @property
    def nfe(self) -> float:
        """Evaluations per image."""
        assert self.times is not None
        return float(len(self.times))

    def probabilities(self, observation: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones(len(observation), device=observation.device)


def whole(nfe: float) -> int:
    """Evaluations of a fixed schedule at this budget: rounded up, lest it get less than the policy."""
    return max(1, math.ceil(nfe - _NOTHING))


def steps(budget: Budget) -> Tensor:
    """K points from 0 to 1, K the budget rounded up."""
    return torch.linspace(0, 1, whole(budget.nfe), dtype=torch.float64)


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


def numbers(raw: object) -> list[float]:
    """The numbers of a list out of a file; ValueError where it is none, or holds anything else."""
    if not isinstance(raw, list) or not all(type(one) in (int, float) for one in raw):
        raise ValueError("not a list of numbers")  # a string is no list of digits, and true no 1
    try:
        return [float(one) for one in raw]
    except OverflowError:
        raise ValueError("an integer too large for a float") from None


def text_or_none(raw: Mapping[str, Any], key: str) -> str | None:
    """An entry of a file that may be missing."""
    return None if raw.get(key) is None else str(raw[key])


def read_schedule(raw: Mapping[str, Any], path: Path) -> FixedSchedule:
    """What a schedule file holds, ``{schema, times[, solver, network_times, orders, model_hash]}``.

    Raises:
        UserError: It is damaged.
    """
    if raw["schema"] != SCHEDULE_SCHEMA:
        raise UserError(
            f"schedule {path} has schema '{raw['schema']}', this version reads '{SCHEDULE_SCHEMA}'"
        )
    try:
        times = torch.tensor(numbers(raw["times"]), dtype=torch.float64)
        told = raw.get("network_times")
        network_times = None if told is None else torch.tensor(numbers(told), dtype=torch.float64)
    except (ValueError, KeyError):
        raise UserError(
            f"schedule {path} is damaged: it needs 'schema' and a list of numbers 'times'"
        ) from None
    if len(times) == 0 or not bool((times.diff() < 0).all()):
        raise UserError(f"schedule {path}: times must descend")
    if network_times is not None and not (
        len(network_times) == len(times) and bool(torch.isfinite(network_times).all())
    ):
        raise UserError(f"schedule {path}: network_times must be as many numbers as times")
    return FixedSchedule(
        path.name,
        times,
        text_or_none(raw, "solver"),
        network_times,
        text_or_none(raw, "model_hash"),
        _orders(raw.get("orders"), len(times), path),
    )


def _orders(raw: object, count: int, path: Path) -> Tensor | None:
    """Those of the jumps to the times of a file, where it has any."""
    if raw is None:
        return None
    if not (isinstance(raw, list) and len(raw) == count and all(type(k) is int and k >= 1 for k in raw)):
        raise UserError(f"schedule {path}: orders must be as many whole numbers as times, 1 at least")
    return torch.tensor(raw)
