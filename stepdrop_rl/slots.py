"""Continuous batching: samples in flight, each at its own time, each decided up to its next evaluation.

Between two evaluations a sample shows nothing new, so its decisions up to the next evaluation are made at
once. The agent gives probabilities, ``u(seed, image, time) < p`` draws. One that plans says at once which
point comes next. An agent with a memory is shown those points one after the other, and what it remembers at
the next evaluation stays with the sample.

Shapes: S = slots; R = slots in use; N = points of the grid; P = points decided at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent, PlanningAgent, RecurrentAgent, orders_of
from agents.planned import Planned
from envs.observation import Grid, observe
from envs.philox import Stream, uniform
from envs.protocols import Evidence
from stepdrop_rl.process import DiffusionProcess

STRETCH = 8  # points ahead that are looked at together on a CPU


@dataclass(frozen=True)
class Finished:
    """Samples that are done: ids (R,), images (R, C, H, W), evaluated (R, N)."""

    ids: Tensor
    images: Tensor
    evaluated: Tensor


class Slots:
    """The samples in flight: where each stands, and which point of the grid it evaluates next.

    Args:
        process: Their transition, a row a slot.
        agent: Decides.
        times: (N,) the grid.
        price: Of an evaluation, as the agent is told.
        mode: Take the likelier action instead of drawing.
    """

    def __init__(
        self, process: DiffusionProcess, agent: Agent, times: Tensor, price: float, *, mode: bool
    ) -> None:
        self.process = process
        self.agent = agent
        self.mode = mode
        device, num_slots = times.device, process.num_rows
        self.grid = Grid.of(times, process)
        self.all = torch.arange(num_slots, device=device)
        self.ids = torch.zeros_like(self.all)
        self.point = torch.zeros_like(self.all)  # evaluated next; once evaluated, last
        self.evaluated = torch.zeros(num_slots, len(times), dtype=torch.bool, device=device)
        self.coins = torch.zeros(num_slots, len(times), dtype=torch.float64, device=device)
        self.coin = torch.zeros(num_slots, dtype=torch.float64, device=device)  # of those who plan
        self.price = torch.full((num_slots,), price, dtype=torch.float64, device=device)
        # Asking which rows are decided makes a GPU wait: there, all points are looked at together.
        self.stretch = STRETCH if device.type == "cpu" else len(times)
        orders = orders_of(agent)
        self.orders = None if orders is None else orders.to(device)
        # Whole schedules are known when a sample begins.
        self.plan = torch.zeros_like(self.evaluated) if isinstance(agent, Planned) else None
        self.planning = agent if isinstance(agent, PlanningAgent) else None
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
        if self.plan is not None or self.planning is not None:
            self.coin[rows] = self._coins(ids, times[:1].expand(len(ids)))
        if self.plan is not None:
            assert isinstance(self.agent, Planned)
            self.plan[rows] = self.agent.plan(ids, self.coin[rows])
            self.point[rows] = self.plan[rows].to(torch.uint8).argmax(1)
        self.process.start(rows, ids, times[self.point[rows]])
        if self.recurrent is not None:
            self.state[rows] = self._new_state
        if not (self.mode or self.plan is not None or self.planning is not None):
            flat = self._coins(ids.repeat_interleave(len(times)), times.repeat(len(ids)))
            self.coins[rows] = flat.reshape(len(ids), len(times))

    def _coins(self, ids: Tensor, times: Tensor) -> Tensor:
        """u in [0, 1) of images ``ids`` at ``times``, both (R,)."""
        key: dict[str, Any] = {"seed": self.process.seed, "role": self.process.role}
        u = uniform(1, stream=Stream.DECISION, image=ids, time=times, **key)
        return u.squeeze(1)

    def evaluate(self, rows: Tensor) -> None:
        """One network call: every row at the point that it stands at."""
        point = self.point[rows]
        orders = None if self.orders is None else self.orders[point]
        self.process.evaluate(rows, self.grid.times[point], orders)
        self.evaluated[rows, point] = True

    def decide(self, rows: Tensor) -> Tensor | None:
        """Move the rows to the points they evaluate next; return which of them are done (None: none is).

        The points ahead are looked at a stretch at a time: most rows are decided in the first.
        """
        size = len(self.grid)
        anchor = self.point[rows]
        if self.planning is not None:
            beyond = (anchor + 1).clamp(max=size - 1).unsqueeze(1)
            planned = self.planning.following(self._observation(rows, anchor, beyond), self.coin[rows])
            return self._moved(rows, torch.maximum(planned, anchor + 1))
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
        return self._moved(rows, following)

    def _moved(self, rows: Tensor, following: Tensor) -> Tensor | None:
        """Let the rows stand at what they evaluate next; which of them are done (None: none is)."""
        self.point[rows] = following
        done = following >= len(self.grid)
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
        return p > 0.5 if self.mode else self.coins[rows].gather(1, points) < p

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
