"""Whole schedules, dealt to images before they begin: mixtures that never look at what they draw.

A fixed schedule errs the same way on every image; a mixture of several lets their errors average out in the
set, at the same mean cost. It is the rival that a policy which looks must beat before its looks are worth
anything.
Shapes: R images; S schedules; G points of the grid that holds all their times.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.fixed import FixedSchedule, numbers, read_schedule, text_or_none
from envs.errors import UserError

MIXTURE_SCHEMA = "stepdrop_rl.mixture/1"
ORACLE_SCHEMA = "stepdrop_rl.oracle/1"


class Planned(ABC):
    """An :class:`agents.base.Agent` whose decisions for an image are made before it begins.

    Args:
        name: How tables call it.
        times: (G,) grid, descending.
        masks: (S, G) bool: which points a schedule evaluates, one at least.
        solver: The solver they were made for, or None.
        orders: (G,) of the jumps to the grid's points, or None: the solver's own.
    """

    observes = False
    model_hash: str | None = None  # of the model they were made for, where a file says it

    def __init__(
        self,
        name: str,
        times: Tensor,
        masks: Tensor,
        solver: str | None = None,
        orders: Tensor | None = None,
    ) -> None:
        assert bool(masks.any(1).all()), "every schedule evaluates somewhere"
        self.name = name
        self.solver = solver
        self.times: Tensor | None = times.double()
        self.masks = masks
        self.orders = orders

    @abstractmethod
    def choice(self, images: Tensor, coins: Tensor) -> Tensor:
        """Which schedule each image gets, (R,): by its number or its coin, uniform on [0, 1)."""

    def plan(self, images: Tensor, coins: Tensor) -> Tensor:
        """The points that each image evaluates, (R, G) bool."""
        return self.masks.to(images.device)[self.choice(images, coins)]

    def probabilities(self, observation: Tensor) -> Tensor:
        """The mean rate: what is known of an image whose number is not."""
        return torch.full((len(observation),), float(self.masks.double().mean()), device=observation.device)


class Mixture(Planned):
    """Deals schedules by chance.

    Args:
        name: How tables call it.
        schedules: S lists of real times, descending; they may begin at different ones.
        weights: Their chances.
        solver: The solver they were made for, or None.
    """

    def __init__(
        self,
        name: str,
        schedules: Sequence[Sequence[float]],
        weights: Sequence[float],
        solver: str | None = None,
    ) -> None:
        super().__init__(name, *_on_one_grid(schedules), solver)
        self.schedules = [list(schedule) for schedule in schedules]
        chances = torch.tensor(weights, dtype=torch.float64)
        self.weights = chances / chances.sum()

    @property
    def nfe(self) -> float:
        """Mean evaluations per image."""
        return float(self.weights @ self.masks.sum(1).double())

    def choice(self, images: Tensor, coins: Tensor) -> Tensor:
        """By the coin alone."""
        cumulated = self.weights.cumsum(0).to(coins.device)
        return torch.searchsorted(cumulated, coins.contiguous(), right=True).clamp(max=len(cumulated) - 1)


class Dealt(Planned):
    """The schedules that another agent gave to images 0 … S − 1, each dealt to some other image.

    What it keeps of that agent is its mixture of whole schedules; what it takes away is that each was made
    for its image.

    Args:
        name: How tables call it.
        times: (G,) that agent's grid.
        masks: (S, G) bool: what it evaluated.
        orders: (G,) of that agent's jumps, or None.
        shift: By how many images.
    """

    def __init__(
        self, name: str, times: Tensor, masks: Tensor, orders: Tensor | None = None, shift: int = 1
    ) -> None:
        super().__init__(name, times, masks, orders=orders)
        self.shift = shift

    def choice(self, images: Tensor, coins: Tensor) -> Tensor:
        """By the image's number."""
        return (images + self.shift) % len(self.masks)


class Oracle(Planned):
    """A schedule for each of S training noises, found in hindsight: to be cloned.

    On other noises it is nothing: no policy, and no bound on what looking may bring, which is what its
    schedules are worth to their own noises.

    Args:
        name: How tables call it.
        schedules: S lists of real times, descending; image i has the i-th.
        solver: The solver they were made for, or None.
    """

    def __init__(self, name: str, schedules: Sequence[Sequence[float]], solver: str | None = None) -> None:
        super().__init__(name, *_on_one_grid(schedules), solver)
        self.schedules = [list(schedule) for schedule in schedules]

    @property
    def nfe(self) -> float:
        """Mean evaluations per image."""
        return float(self.masks.sum(1).double().mean())

    def choice(self, images: Tensor, coins: Tensor) -> Tensor:
        """By the image's number; beyond S, where nothing was found, in turn."""
        return images % len(self.masks)


def _on_one_grid(schedules: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """All their times, (G,) descending, and which of them each schedule evaluates, (S, G)."""
    union = sorted({t for schedule in schedules for t in schedule}, reverse=True)
    place = {t: k for k, t in enumerate(union)}
    masks = torch.zeros(len(schedules), len(union), dtype=torch.bool)
    for s, schedule in enumerate(schedules):
        masks[s, [place[t] for t in schedule]] = True
    return torch.tensor(union, dtype=torch.float64), masks


def mixture_record(mixture: Mixture) -> dict[str, Any]:
    """What a mixture's file holds, at least."""
    return {
        "schema": MIXTURE_SCHEMA,
        "solver": mixture.solver,
        "schedules": mixture.schedules,
        "weights": mixture.weights.tolist(),
    }


def oracle_record(oracle: Oracle) -> dict[str, Any]:
    """What an oracle's file holds, at least."""
    return {"schema": ORACLE_SCHEMA, "solver": oracle.solver, "schedules": oracle.schedules}


def read_plan(path: Path) -> FixedSchedule | Mixture | Oracle:
    """Read a file of a schedule, a mixture or an oracle; :class:`UserError` if damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw["schema"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):  # the last: brackets without end
        raise UserError(
            f"{path} is damaged: a file of times needs 'schema' and 'times' or 'schedules'"
        ) from None
    if schema not in (MIXTURE_SCHEMA, ORACLE_SCHEMA):
        return read_schedule(raw, path)
    try:
        schedules = [numbers(schedule) for schedule in raw["schedules"]]
        weights = numbers(raw.get("weights", [1.0] * len(schedules)))
    except (ValueError, TypeError, KeyError):
        raise UserError(f"mixture {path} is damaged: it needs 'schedules' and 'weights'") from None
    if not schedules or len(weights) != len(schedules):
        raise UserError(f"mixture {path}: it needs as many weights as schedules, one at least")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise UserError(f"mixture {path}: weights must not be negative, nor all of them 0")
    for schedule in schedules:
        if not schedule or not all(later < earlier for earlier, later in itertools.pairwise(schedule)):
            raise UserError(f"mixture {path}: the times of every schedule must descend")
    solver = text_or_none(raw, "solver")
    plan: Mixture | Oracle
    if schema == ORACLE_SCHEMA:
        plan = Oracle(path.name, schedules, solver)
    else:
        plan = Mixture(path.name, schedules, weights, solver)
    plan.model_hash = text_or_none(raw, "model_hash")
    return plan
