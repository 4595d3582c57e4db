"""What a search may ask of a model, and what it gives back.

Shapes: B = training noises; G = points of a fine grid; K = evaluations of the schedule; images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from agents.base import TimeScale
from envs.errors import UserError


class Trajectory(NamedTuple):
    """A teacher's pass: the noisy images and clean estimates at every point of a grid.

    ``x`` and ``x0`` are (G, B, C, H, W), ``times`` (G,); ``end`` (B, C, H, W) are its results.
    """

    times: Tensor
    x: Tensor
    x0: Tensor
    end: Tensor


class Ground(Protocol):
    """A model with a solver, on training noise. It counts the network evaluations that it is asked for."""

    scale: TimeScale
    t_start: float
    t_end: float

    def trajectory(self, times: Tensor, num_images: int) -> Trajectory:
        """The order-1 pass of images 0 … num_images − 1 through ``times``."""

    def clean(self, x: Tensor, times: Tensor) -> Tensor:
        """Clean estimates of ``x`` (B, C, H, W) at ``times`` (B,)."""

    def jump(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Order-1 jumps from times ``t`` to ``s``, both (B,)."""

    def draw(self, times: Tensor, images: Sequence[int], *, network_times: Tensor | None = None) -> Tensor:
        """Results of a schedule for these images by the solver; differentiable in both kinds of times."""

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of the reward's extractor; differentiable."""

    def real_features(self, count: int) -> Tensor:
        """Those of that many real images, in an order that has no meaning; of all, where there are fewer."""

    def real(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and covariance (F, F) of the real images' features, float64."""

    def distance(self, times: Tensor, num_images: int) -> float:
        """What the schedule's results are worth to the reward's extractor: lower is better."""

    @property
    def evaluations(self) -> int:
        """Network evaluations of single images so far."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        times: Real times, descending.
        objective: What it made small (its own measure).
        network_times: Times that the network is told instead, where the method chose them as well.
        trace: Objective after each round.
        components: Of a mixture: chance and times of each of its schedules; ``times`` is then the likeliest.
        per_image: Of an oracle: the times of every training noise; ``times`` are then the first's, and
            ``objective`` the mean over the noises.
        shared: Of an oracle: the objective of one schedule for all of these noises.
    """

    times: list[float]
    objective: float
    network_times: list[float] | None = None
    trace: tuple[float, ...] = ()
    components: tuple[tuple[float, list[float]], ...] = ()
    per_image: tuple[list[float], ...] = ()
    shared: float | None = None


def require_points(method: str, nfe: int, grid: int) -> None:
    """Raise :class:`UserError` for more evaluations than a search's grid has points."""
    if nfe > grid:
        raise UserError(f"{method} chooses among {grid} points: nfe must be at most {grid}, not {nfe}")


def at_effort(count: int, effort: float) -> int:
    """What is ``count`` at effort 1; at least one."""
    return max(1, round(count * effort))


Search = Callable[[int, Ground, int], Found]
"""From the number of evaluations, a model and a seed to what was found."""
