"""The decision problem, batched: where each sample is, what an action does, what it earns.

:class:`Trajectories` is the transition: the sampling engine walks it too. :class:`StepDropCore` adds
episodes and reward, and stands under the three shells (``single``, ``vector``, ``sb3``).

    reward = Φ(s′) − Φ(s) − price·[evaluated],  γ = 1:
    return = Φ(end) − Φ(after the first evaluation) − price·(NFE − 1).

Shapes: R = rows asked for; rows, actions (R,) int64; prices, rewards (R,) float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.dual import MovingPrice
from envs.observation import Grid, observe
from envs.philox import Role, Stream, uniform
from envs.protocols import QualityScore, ReverseProcess

SKIP, EVALUATE = 0, 1


class Trajectories:
    """Samples on their way down a grid of decision times, each at its own point.

    The first point is always evaluated, when a sample begins. After its last decision a sample is done and
    its result is its current clean estimate.

    Args:
        process: The reverse diffusion.
        times: (N,) decision times, descending.
    """

    def __init__(self, process: ReverseProcess, times: Tensor) -> None:
        self.process = process
        self.grid = Grid.of(times.double(), process)
        num_rows = process.num_rows
        self.index = torch.zeros(num_rows, dtype=torch.int64, device=times.device)
        self.anchor = torch.zeros_like(self.index)
        self.nfe = torch.zeros_like(self.index)
        self.price = torch.zeros(num_rows, dtype=torch.float64, device=times.device)
        self.evaluated = torch.zeros(num_rows, len(times), dtype=torch.bool, device=times.device)

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Start new samples in ``rows``: fresh noise, evaluated at the first point."""
        t = self.grid.times[torch.zeros_like(rows)]
        self.process.start(rows, images, t)
        self.process.evaluate(rows, t)
        self.index[rows] = min(1, len(self.grid) - 1)
        self.anchor[rows] = 0
        self.nfe[rows] = 1
        self.price[rows] = prices
        self.evaluated[rows] = self.grid.times == self.grid.times[0]

    def advance(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Evaluate the rows whose action says so, move all one point on; return the evaluated rows."""
        chosen = rows if bool(actions.all()) else rows[actions.bool()]
        if len(chosen):
            here = self.index[chosen]
            self.process.evaluate(chosen, self.grid.times[here])
            self.anchor[chosen] = here
            self.nfe[chosen] += 1
            self.evaluated[chosen, here] = True
        self.index[rows] += 1
        return chosen

    def done(self, rows: Tensor) -> Tensor:
        """Whether the rows have decided at every point."""
        return self.index[rows] >= len(self.grid)

    def observe(self, rows: Tensor) -> Tensor:
        """(R, D) observations; a sample that is done is seen at the last point."""
        index = self.index[rows].clamp(max=len(self.grid) - 1)
        evidence = self.process.evidence(rows)
        return observe(self.grid, index, self.anchor[rows], self.nfe[rows], self.price[rows], evidence)


@dataclass(frozen=True)
class Step:
    """What a step brought each row."""

    reward: Tensor
    terminated: Tensor


class StepDropCore:
    """Episodes and rewards over :class:`Trajectories`.

    Episode k of a row seeded with s draws its image and its price from (s, k) alone, so a batch of rows
    behaves as that many single environments.

    Args:
        process: The reverse diffusion.
        times: (N,) decision times, descending.
        quality: Φ, see :class:`envs.protocols.QualityScore`; scaled so that the full trajectory gains 1.
        num_images: Episodes start from images 0 … num_images − 1.
        prices: Smallest and largest price; drawn log-uniformly per episode (equal: fixed).
        moving: Instead, a price that what episodes spend moves; theirs are drawn around it.
    """

    def __init__(
        self,
        process: ReverseProcess,
        times: Tensor,
        quality: QualityScore,
        *,
        num_images: int,
        prices: tuple[float, float],
        moving: MovingPrice | None = None,
    ) -> None:
        self.walk = Trajectories(process, times)
        self.quality = quality
        self.num_images = num_images
        self.prices = prices
        self.moving = moving
        device = self.walk.index.device
        self.rows = torch.arange(process.num_rows, device=device)
        self.seeds = torch.zeros(process.num_rows, dtype=torch.int64, device=device)
        self.episodes = torch.zeros_like(self.seeds)
        self.images = torch.zeros_like(self.seeds)
        self.phi = torch.zeros(process.num_rows, dtype=torch.float64, device=device)

    def seed(self, rows: Tensor, seeds: Tensor) -> None:
        """Give rows new seeds; their next episode is the first of that seed."""
        self.seeds[rows] = seeds
        self.episodes[rows] = 0

    def reset(self, seed: int) -> None:
        """Forget what earlier episodes taught the quality score and the price."""
        self.quality.reset(seed)
        if self.moving is not None:
            self.moving.reset()

    def begin(self, rows: Tensor) -> None:
        """Start the rows' next episodes."""
        u = uniform(
            2,
            seed=self.seeds[rows],
            role=Role.POLICY_TRAINING,
            stream=Stream.EPISODE,
            image=self.episodes[rows],
        )
        images = (u[:, 0] * self.num_images).long()
        low, high = self.prices if self.moving is None else self.moving.prices
        if low == high:
            prices = torch.full_like(u[:, 1], low)
        else:
            prices = torch.exp(math.log(low) + u[:, 1] * (math.log(high) - math.log(low)))
        self.episodes[rows] += 1
        self.images[rows] = images
        self.walk.begin(rows, images, prices)
        self.quality.begin(rows, images, prices)
        self.phi[rows] = self._score(rows)

    def _score(self, rows: Tensor) -> Tensor:
        """Φ where the rows were last evaluated."""
        lam = self.walk.grid.lam[self.walk.anchor[rows]]
        return self.quality.score(rows, self.walk.process.x0(rows), lam).double()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, where every row has just begun an episode."""
        return {"seeds": self.seeds, "episodes": self.episodes - 1, **self.learned()}

    def learned(self) -> dict[str, Tensor]:
        """What earlier episodes taught the quality score and the price."""
        return self.quality.state() | ({} if self.moving is None else self.moving.state())

    def load_learned(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`learned`."""
        self.quality.load_state(tensors)
        if self.moving is not None:
            self.moving.load_state(tensors)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`; the next :meth:`begin` starts the episodes anew."""
        self.seeds.copy_(tensors["seeds"])
        self.episodes.copy_(tensors["episodes"])
        self.load_learned(tensors)

    def step(self, rows: Tensor, actions: Tensor) -> Step:
        """Act in the rows; Φ is only computed where the clean estimate changed."""
        before = self.phi[rows]
        evaluated = self.walk.advance(rows, actions)
        if len(evaluated):
            self.phi[evaluated] = self._score(evaluated)
        reward = self.phi[rows] - before - self.walk.price[rows] * actions.double()
        terminated = self.walk.done(rows)
        if bool(terminated.any()):
            finished = rows[terminated]
            self.quality.end(finished, self.walk.process.x0(finished))
            if self.moving is not None:
                self.moving.record(self.walk.nfe[finished])
        return Step(reward, terminated)
