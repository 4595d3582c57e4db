"""The sampling engine: one loop for any agent with any solver, its network calls always full.

Samples take different numbers of evaluations, so none waits for another: each slot of the batch holds a
sample that needs an evaluation now, at its own time, and a finished sample's slot is filled by the next
image (:mod:`stepdrop_rl.slots`). Every round is one network call of a full batch: throughput follows the mean
number of evaluations. A fixed schedule's samples are all at the same time: they go in step
(:mod:`stepdrop_rl.fixed_pass`).

Image i is a function of (seed, role, i), whatever it is packed with.

Shapes: M = images drawn; R = images finished together; N = points of the grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent
from agents.fixed import FixedSchedule
from envs.observation import Projection
from envs.philox import Role, Stream, normal
from stepdrop_rl.data import as_files
from stepdrop_rl.estimates import Clip
from stepdrop_rl.fixed_pass import FixedPass
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.slots import Finished, Slots
from stepdrop_rl.solvers.base import Solver


@dataclass(frozen=True)
class Samples:
    """What a run of the engine brought, in order of the images.

    Args:
        images: (M, C, H, W) clean estimates: float32, or uint8 as files would hold them.
        nfe: (M,) network evaluations of each.
        evaluated: (M, N) bool: at which grid points.
        times: (N,) the grid.
        seconds: Wall time of the run.
        occupancy: Share of the slots that were in use, over all network calls.
    """

    images: Tensor
    nfe: Tensor
    evaluated: Tensor
    times: Tensor
    seconds: float
    occupancy: float = 1.0

    @property
    def images_per_second(self) -> float:
        """Throughput over the whole run."""
        return len(self.nfe) / self.seconds


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Draws images.

    Args:
        denoiser: The model.
        solver: The jump.
        times: (N,) decision grid, for agents that bring none.
        seed: Of all noise and decisions.
        role: Whose noise.
        batch_size: Slots: images held at once.
        projection: Of the network's features, for agents that observe them.
        mode: Take the likelier action instead of drawing.
        clip: How clean estimates are kept within [−1, 1].
    """

    denoiser: Denoiser
    solver: Solver
    times: Tensor
    seed: int
    role: Role = Role.EVALUATION
    batch_size: int = 256
    projection: Projection | None = None
    mode: bool = False
    clip: Clip = "static"

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
        room: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Samples:
        """Draw images ``first_image …``; ``progress`` is told how many each round finished.

        ``room`` (M, C, H, W) uint8 takes them as files would hold them (:func:`stepdrop_rl.room.room_for`),
        in place of four times as much memory.

        Raises:
            UserError: Images that are to be files hold NaN.
        """
        times = self.grid(agent)
        images = torch.empty(num_images, *self.denoiser.shape) if room is None else room
        evaluated = torch.empty(num_images, len(times), dtype=torch.bool)
        began = time.perf_counter()
        calls = 0
        for finished in self.stream(agent, num_images, price=price, first_image=first_image):
            calls += 1
            if finished is None:
                continue
            place = finished.ids.cpu() - first_image
            images[place] = finished.images.cpu() if room is None else as_files(finished.images).cpu()
            evaluated[place] = finished.evaluated.cpu()
            if progress is not None:
                progress(len(place))
        if times.device.type == "cuda":
            torch.cuda.synchronize(times.device)
        seconds = time.perf_counter() - began
        nfe = evaluated.sum(1)
        slots = calls * min(self.batch_size, num_images)
        return Samples(images, nfe, evaluated, times.cpu(), seconds, float(nfe.sum()) / max(slots, 1))

    @torch.no_grad()
    def stream(
        self, agent: Agent, num_images: int, *, price: float = 0.0, first_image: int = 0
    ) -> Iterator[Finished | None]:
        """Draw images in bounded memory: after every network call, what it finished (None: nothing)."""
        times = self.grid(agent)
        images = torch.arange(first_image, first_image + num_images, device=times.device)
        if isinstance(agent, FixedSchedule):
            yield from self._in_step(agent, times, images)
            return
        slots = Slots(
            self._process(agent, min(self.batch_size, num_images)), agent, times, price, mode=self.mode
        )
        slots.fill(slots.all[: len(images)], images[: len(slots.all)])
        taken = len(slots.all)
        active = slots.all
        while len(active):
            slots.evaluate(active)
            done = slots.decide(active)
            if done is None:
                yield None
                continue
            finished = active[done]
            yield slots.result(finished)
            fresh = images[taken : taken + len(finished)]
            slots.fill(finished[: len(fresh)], fresh)
            taken += len(fresh)
            if len(fresh) < len(finished):
                over = torch.zeros_like(slots.all, dtype=torch.bool)
                over[finished[len(fresh) :]] = True
                active = active[~over[active]]

    def _process(self, agent: Agent, num_rows: int) -> DiffusionProcess:
        return DiffusionProcess(
            self.denoiser,
            self.solver,
            num_rows=num_rows,
            seed=self.seed,
            role=self.role,
            clip=self.clip,
            projection=self.projection if agent.observes else None,
        )

    def _in_step(self, agent: FixedSchedule, times: Tensor, images: Tensor) -> Iterator[Finished | None]:
        """All samples at the same time: no coins, no state of their own."""
        told = None if agent.network_times is None else agent.network_times.to(times.device)
        run = FixedPass(
            self.denoiser, self.solver, times, clip=self.clip, network_times=told, orders=agent.orders
        )
        key: dict[str, Any] = {"seed": self.seed, "role": self.role}
        shape = self.denoiser.shape
        for ids in images.split(self.batch_size):

            def noise(t: Tensor, ids: Tensor = ids) -> Tensor:
                return normal(shape, stream=Stream.JUMP, image=ids, time=t, **key)

            x = normal(shape, stream=Stream.INITIAL, image=ids, **key)
            for call, x0 in enumerate(run.run(x, noise), start=1):
                if call == len(times):
                    yield Finished(ids, x0, torch.ones(len(ids), len(times), dtype=torch.bool))
                else:
                    yield None
