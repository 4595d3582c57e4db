"""The sampling engine: one loop for any agent with any solver, its network calls always full.

Samples take different numbers of evaluations, so none waits for another: each slot of the batch holds a
sample that needs an evaluation now, at its own time, and a finished sample's slot is filled by the next
image. Every round is one network call of a full batch: throughput follows the mean number of evaluations.

Between two evaluations a sample shows nothing new, so its decisions up to the next evaluation are made at
once. The agent gives probabilities, the engine draws ``u(seed, image, time) < p``: image i is a function of
(seed, role, i), whatever it is packed with. An agent with a memory is shown those points one after the other,
and what it remembers at the next evaluation stays with the sample.

Shapes: M = images drawn; S = slots; R = slots in use; N = points of the grid; P = points decided at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent, RecurrentAgent
from agents.fixed import FixedSchedule
from agents.planned import Planned
from envs.observation import Grid, Projection, observe
from envs.philox import Role, Stream, normal, uniform
from envs.protocols import Evidence
from stepdrop_rl.estimates import Clip
from stepdrop_rl.fixed_pass import FixedPass
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers.base import Solver

STRETCH = 8  # points ahead that are looked at together on a CPU


@dataclass(frozen=True)
class Samples:
    """What a run of the engine brought, in order of the images.

    Args:
        images: (M, C, H, W) float32, clean estimates.
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


@dataclass(frozen=True)
class Finished:
    """Samples that are done: ids (R,), images (R, C, H, W), evaluated (R, N)."""

    ids: Tensor
    images: Tensor
    evaluated: Tensor


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
        progress: Callable[[int], None] | None = None,
    ) -> Samples:
        """Draw images ``first_image …``; ``progress`` is told how many each round finished."""
        times = self.grid(agent)
        images = torch.empty(num_images, *self.denoiser.shape)
        evaluated = torch.empty(num_images, len(times), dtype=torch.bool)
        began = time.perf_counter()
        calls = 0
        for finished in self.stream(agent, num_images, price=price, first_image=first_image):
            calls += 1
            if finished is None:
                continue
            place = finished.ids.cpu() - first_image
            images[place] = finished.images.cpu()
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
        slots = _Slots(self, agent, times, min(self.batch_size, num_images), price)
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

    def _in_step(self, agent: FixedSchedule, times: Tensor, images: Tensor) -> Iterator[Finished | None]:
        """All samples at the same time: no coins, no state of their own."""
        told = None if agent.network_times is None else agent.network_times.to(times.device)
        run = FixedPass(self.denoiser, self.solver, times, clip=self.clip, network_times=told)
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


class _Slots:
    """The samples in flight: where each stands, and which point of the grid it evaluates next."""

    def __init__(self, engine: Engine, agent: Agent, times: Tensor, num_slots: int, price: float) -> None:
        self.engine = engine
        self.agent = agent
        device = times.device
        self.process = DiffusionProcess(
            engine.denoiser,
            engine.solver,
            num_rows=num_slots,
            seed=engine.seed,
            role=engine.role,
            clip=engine.clip,
            projection=engine.projection if agent.observes else None,
        )
        self.grid = Grid(times, self.process.lam(times), torch.exp(self.process.log_alpha(times)))
        self.all = torch.arange(num_slots, device=device)
        self.ids = torch.zeros_like(self.all)
        self.point = torch.zeros_like(self.all)  # evaluated next; once evaluated, last
        self.evaluated = torch.zeros(num_slots, len(times), dtype=torch.bool, device=device)
        self.coins = torch.zeros(num_slots, len(times), dtype=torch.float64, device=device)
        self.price = torch.full((num_slots,), price, dtype=torch.float64, device=device)
        # Asking which rows are decided makes a GPU wait: there, all points are looked at together.
        self.stretch = STRETCH if device.type == "cpu" else len(times)
        # Whole schedules are known when a sample begins.
        self.plan = torch.zeros_like(self.evaluated) if isinstance(agent, Planned) else None
        self.recurrent = agent if isinstance(agent, RecurrentAgent) else None
        if self.recurrent is not None:
            self._new_state = self.recurrent.initial_state(1).to(device)
            self.state = self._new_state.repeat(num_slots, 1)

    def fill(self, rows: Tensor, ids: Tensor) -> None:
        """Start these images in these slots."""
        if not len(rows):
            return
        self.ids[rows] = ids
        self.evaluated[rows] = False
        times = self.grid.times
        self.point[rows] = 0
        if self.plan is not None:
            assert isinstance(self.agent, Planned)
            self.plan[rows] = self.agent.plan(ids, self._coins(ids, times[:1].expand(len(ids))))
            self.point[rows] = self.plan[rows].to(torch.uint8).argmax(1)
        self.process.start(rows, ids, times[self.point[rows]])
        if self.recurrent is not None:
            self.state[rows] = self._new_state
        if not (self.engine.mode or self.plan is not None):
            flat = self._coins(ids.repeat_interleave(len(times)), times.repeat(len(ids)))
            self.coins[rows] = flat.reshape(len(ids), len(times))

    def _coins(self, ids: Tensor, times: Tensor) -> Tensor:
        """u in [0, 1) of images ``ids`` at ``times``, both (R,)."""
        engine = self.engine
        u = uniform(1, seed=engine.seed, role=engine.role, stream=Stream.DECISION, image=ids, time=times)
        return u.squeeze(1)

    def evaluate(self, rows: Tensor) -> None:
        """One network call: every row at the point that it stands at."""
        point = self.point[rows]
        self.process.evaluate(rows, self.grid.times[point])
        self.evaluated[rows, point] = True

    def decide(self, rows: Tensor) -> Tensor | None:
        """Move the rows to the points they evaluate next; return which of them are done (None: none is).

        The points ahead are looked at a stretch at a time: most rows are decided in the first.
        """
        size = len(self.grid)
        anchor = self.point[rows]
        following = torch.full_like(anchor, size)
        undecided = torch.arange(len(rows), device=rows.device)
        for offset in range(1, size - int(anchor.min()), self.stretch):
            mine, start = rows[undecided], anchor[undecided]
            ahead = start.unsqueeze(1) + torch.arange(offset, offset + self.stretch, device=rows.device)
            valid = ahead < size
            ahead = ahead.clamp(max=size - 1)  # (R, P)
            take = self._taken(mine, start, ahead, valid)
            found = take.any(1)
            first = take.to(torch.uint8).argmax(1, keepdim=True)
            following[undecided] = torch.where(found, ahead.gather(1, first).squeeze(1), size)
            undecided = undecided[~found & valid[:, -1]]
            if not len(undecided):
                break
        self.point[rows] = following
        done = following >= size
        return done if bool(done.any()) else None

    def _taken(self, rows: Tensor, anchor: Tensor, ahead: Tensor, valid: Tensor) -> Tensor:
        """Which of the points ahead would be evaluated, (R, P): the first of them is."""
        if self.plan is not None:
            return self.plan[rows].gather(1, ahead) & valid
        if self.recurrent is not None:
            return self._walk(self.recurrent, rows, anchor, ahead, valid)
        return self._drawn(rows, ahead, self._probabilities(rows, anchor, ahead)) & valid

    def _drawn(self, rows: Tensor, points: Tensor, p: Tensor) -> Tensor:
        """Whether to evaluate at these points, (R, P), by probabilities (R, P)."""
        return p > 0.5 if self.engine.mode else self.coins[rows].gather(1, points) < p

    def _walk(
        self, agent: RecurrentAgent, rows: Tensor, anchor: Tensor, ahead: Tensor, valid: Tensor
    ) -> Tensor:
        """Where each row evaluates next, (R, P): at one point at most. Its state is left as it is there."""
        take = torch.zeros_like(valid)
        going, state = torch.arange(len(rows), device=rows.device), self.state[rows]
        observation = self._observation(rows, anchor, ahead).unflatten(0, ahead.shape)
        for k in range(ahead.shape[1]):
            going = going[valid[going, k]]
            if not len(going):
                break
            p, state[going] = agent.step(observation[going, k], state[going])
            chosen = self._drawn(rows[going], ahead[going, k : k + 1], p.unsqueeze(1)).squeeze(1)
            take[going, k] = chosen
            going = going[~chosen]
        self.state[rows] = state
        return take

    def _probabilities(self, rows: Tensor, anchor: Tensor, ahead: Tensor) -> Tensor:
        """P(evaluate), (R, P), at the points ahead, as they look from each sample's last evaluation."""
        if not self.agent.observes:
            return self.agent.probabilities(torch.empty(ahead.numel(), 0, device=rows.device)).reshape(
                ahead.shape
            )
        return self.agent.probabilities(self._observation(rows, anchor, ahead)).reshape(ahead.shape)

    def _observation(self, rows: Tensor, anchor: Tensor, ahead: Tensor) -> Tensor:
        """What there is to see, (R·P, D), at the points ahead."""
        count = ahead.shape[1]
        seen = self.process.evidence(rows)
        repeated = Evidence(
            **{
                name: getattr(seen, name).repeat_interleave(count, 0)
                for name in Evidence.__dataclass_fields__
            }
        )
        return observe(
            self.grid,
            ahead.flatten(),
            anchor.repeat_interleave(count),
            self.evaluated[rows].sum(1).repeat_interleave(count),
            self.price[rows].repeat_interleave(count),
            repeated,
        )

    def result(self, rows: Tensor) -> Finished:
        """What came of these rows."""
        return Finished(self.ids[rows].clone(), self.process.x0(rows), self.evaluated[rows])
