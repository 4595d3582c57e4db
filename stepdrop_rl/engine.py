"""The sampling engine: one batched loop for any agent with any solver.

The agent gives probabilities, the engine draws ``u(seed, image, time) < p``; network calls hold only the
samples that chose to evaluate. Image i is a function of (seed, role, i), whatever batch it is drawn in.

Shapes: M = images drawn; B = batch; N = points of the grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.base import Agent
from agents.fixed import FixedSchedule
from envs.mdp import Trajectories
from envs.philox import Role, Stream, uniform
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.models.retimed import RetimedDenoiser
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers.base import Solver


@dataclass(frozen=True)
class Samples:
    """What a run of the engine brought.

    Args:
        images: (M, C, H, W) float32, clean estimates.
        nfe: (M,) network evaluations of each.
        evaluated: (M, N) bool: at which grid points.
        times: (N,) the grid.
        batch_seconds: Wall time of each batch.
    """

    images: Tensor
    nfe: Tensor
    evaluated: Tensor
    times: Tensor
    batch_seconds: list[float]

    @property
    def images_per_second(self) -> float:
        """Throughput over the whole run."""
        return len(self.nfe) / sum(self.batch_seconds)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Draws images.

    Args:
        denoiser: The model.
        solver: The jump.
        times: (N,) decision grid, for agents that bring none.
        seed: Of all noise and decisions.
        role: Whose noise.
        batch_size: Images held at once.
        projection: Of the network's features, for agents that observe them.
        mode: Take the likelier action instead of drawing.
    """

    denoiser: Denoiser
    solver: Solver
    times: Tensor
    seed: int
    role: Role = Role.EVALUATION
    batch_size: int = 256
    projection: tuple[Tensor, Tensor] | None = None
    mode: bool = False

    def grid(self, agent: Agent) -> Tensor:
        """The grid that ``agent`` walks: its own or the engine's, checked."""
        times = (self.times if agent.times is None else agent.times).to(self.denoiser.schedule.device)
        self.denoiser.schedule.check_times(times)
        return times

    def sample(
        self,
        agent: Agent,
        num_images: int,
        *,
        price: float = 0.0,
        first_image: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Samples:
        """Draw images ``first_image …``; ``progress`` is told how many each batch added."""
        times = self.grid(agent)
        images: list[Tensor] = []
        nfe: list[Tensor] = []
        evaluated: list[Tensor] = []
        seconds = []
        for start in range(first_image, first_image + num_images, self.batch_size):
            size = min(self.batch_size, first_image + num_images - start)
            began = time.perf_counter()
            batch = self._batch(agent, torch.arange(start, start + size), times, price)
            if times.device.type == "cuda":
                torch.cuda.synchronize(times.device)
            seconds.append(time.perf_counter() - began)
            for part, whole in zip(batch, (images, nfe, evaluated), strict=True):
                whole.append(part.cpu())
            if progress is not None:
                progress(size)
        return Samples(torch.cat(images), torch.cat(nfe), torch.cat(evaluated), times.cpu(), seconds)

    @torch.no_grad()
    def _batch(self, agent: Agent, ids: Tensor, times: Tensor, price: float) -> tuple[Tensor, Tensor, Tensor]:
        device = times.device
        ids = ids.to(device)
        told = agent.network_times if isinstance(agent, FixedSchedule) else None
        process = DiffusionProcess(
            self.denoiser if told is None else RetimedDenoiser(self.denoiser, times, told),
            self.solver,
            num_rows=len(ids),
            seed=self.seed,
            role=self.role,
            projection=self.projection if agent.observes else None,
        )
        walk = Trajectories(process, times)
        rows = torch.arange(len(ids), device=device)
        walk.begin(rows, ids, torch.full((len(ids),), price, dtype=torch.float64, device=device))
        blind = torch.empty(len(ids), 0, device=device)
        for point in range(1, len(times)):
            p = agent.probabilities(walk.observe(rows) if agent.observes else blind)
            walk.advance(rows, self._draw(p, ids, times[point]))
        return process.x0(rows), walk.nfe, walk.evaluated

    def _draw(self, p: Tensor, ids: Tensor, t: Tensor) -> Tensor:
        if self.mode:
            return p > 0.5
        if bool((p >= 1).all()):  # a fixed schedule needs no coin
            return torch.ones_like(p, dtype=torch.bool)
        u = uniform(
            1, seed=self.seed, role=self.role, stream=Stream.DECISION, image=ids, time=t.expand(len(ids))
        )
        return u.squeeze(1) < p
