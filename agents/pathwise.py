"""Times of evaluations by gradients through the sampler: pathwise, no coin and no critic between.

A :class:`agents.stepper.Stepper` plans each next evaluation at a real time, and the trajectory is
differentiable in its times (:class:`envs.protocols.TimedTrajectories`). So for K evaluations what is made
small is −Φ(end) itself. What an evaluation shows enters the next plan as a number: its own slope in earlier
times is left out; how a plan moves those after it is not.

How many a sample is to have is learned from the same ends, by regression: whoever had n of K evaluations and
stuck to K tells what K is worth there. A round draws the same images with several K, so that what noise did
to an image is in all of them. Some samples change their minds on the way and were to have one more, or one
less: so plans, and what they are worth, are known there too.

A batch costs K network calls an image, again as many and a backward pass for gradients. The grid costs
nothing and may be as fine as one likes (``env.num_decisions``), but its points are counted as decisions, as
for all learners: on 128 points, 1,000 steps of 64 images are 8 million of them (``decisions``,
``judge_every``).

Shapes: R rows; N points of the grid; D observation entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import blind
from agents.own import OwnLearner
from agents.planning import Shown, Timing, Worth, shown
from agents.policy import LearnedPolicy, PolicyInfo
from agents.stepper import Stepper
from envs.errors import UserError
from envs.observation import LOWEST_PRICE, Projection, observe_from
from envs.protocols import DifferentiableProcess, Evidence

_FICKLE = 0.5  # share of samples that change their minds
_REMEMBERED = 1 << 15  # situations that worths are learned from
_LESSON = 1024  # of them, for every step


@dataclass(frozen=True)
class Minds:
    """How many evaluations rows are to have: ``first`` (R,), and ``final`` once ``turn`` (R,) are spent."""

    first: Tensor
    turn: Tensor
    final: int

    def at(self, spent: int) -> Tensor:
        """K, (R,), after ``spent`` evaluations: of those that had enough, the final one."""
        turned = (self.turn <= spent) | (self.first <= spent)
        return torch.where(turned, self.final, self.first)


class Memory(nn.Module):
    """The last situations whose ends are known: what was seen after how many of K, and what came of it."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.told: Tensor
        self.entries: Tensor
        self.spent: Tensor
        self.count: Tensor
        self.worth: Tensor
        self.register_buffer("told", torch.tensor(0))
        self.register_buffer("entries", torch.zeros(_REMEMBERED, entries))
        self.register_buffer("spent", torch.zeros(_REMEMBERED, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(_REMEMBERED, dtype=torch.int64))
        self.register_buffer("worth", torch.zeros(_REMEMBERED))

    def add(self, seen: Shown, rows: Tensor, count: int, worth: Tensor) -> None:
        """Remember those ``rows`` of what was seen, which had ``count`` evaluations and ends worth (R,)."""
        at = (torch.arange(len(rows)) + int(self.told)) % _REMEMBERED
        self.entries[at], self.spent[at] = seen.entries[rows], seen.spent[rows]
        self.count[at], self.worth[at] = count, worth[rows].float()
        self.told += len(rows)

    def lesson(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some situations: spent, entries, count, worth."""
        known = min(int(self.told), _REMEMBERED)
        at = torch.randint(0, known, (_LESSON,), generator=generator)
        return self.spent[at], self.entries[at], self.count[at], self.worth[at]


class PathwiseLearner(OwnLearner):
    """Learns times for ``min_nfe`` to ``max_nfe`` evaluations; the batch's process must be differentiable."""

    output = "time"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-3,
        "habit_rate": 0.05,
        "final_rate": 0.1,
        "batch_size": 64,
        "min_nfe": 3,
        "max_nfe": 12,
        "max_grad_norm": 0.5,
        "recompute": True,
        "sees": "sample",
    }

    def _check(self) -> None:
        h, core = self.hyperparameters, self.core
        least, most = int(h["min_nfe"]), int(h["max_nfe"])
        if not 1 <= least <= most <= len(core.walk.grid):
            raise UserError(
                f"need 1 <= min_nfe <= max_nfe <= env.num_decisions ({len(core.walk.grid)}), "
                f"not {least} and {most}"
            )
        if most < 2:
            raise UserError("a single evaluation leaves nothing to plan: max_nfe must be at least 2")
        if core.moving is not None:
            raise UserError(
                "'pathwise' spends what prices make worth it: give it min_nfe and max_nfe, no env.target_nfe"
            )
        if int(h["batch_size"]) < 1:
            raise UserError(f"batch_size must be positive, not {h['batch_size']}")
        if not isinstance(core.walk.process, DifferentiableProcess):
            raise UserError("'pathwise' learns by gradients through the sampler: this process has none")

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Times that are even and worths that are 0."""
        self.least, self.most = int(self.hyperparameters["min_nfe"]), int(self.hyperparameters["max_nfe"])
        self.timing = Timing(self.least, self.most, inputs)
        self.worth = Worth(self.least, self.most, inputs)
        self.memory = Memory(inputs)
        blind(self.worth.network, str(self.hyperparameters["sees"]))
        return {"timing": self.timing, "worth": self.worth, "memory": self.memory}

    @property
    def actor_network(self) -> nn.Sequential:
        """From what is unusual to z."""
        return self.timing.actor

    @property
    def process(self) -> DifferentiableProcess:
        """What draws the trajectories."""
        process = self.core.walk.process
        assert isinstance(process, DifferentiableProcess)
        return process

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        # What all samples share is learned faster than what departs from it.
        slow, fast = self.hyperparameters["learning_rate"], self.hyperparameters["habit_rate"]
        networks = [*self.timing.actor.parameters(), *self.worth.network.parameters()]
        return [(networks, slow), ([self.timing.habit, self.worth.table], fast)]

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row, a step of the optimiser for every ``batch_size`` of them."""
        core, size = self.core, int(self.hyperparameters["batch_size"])
        told, sizes = [], []
        first = core.rows[:size]
        images = torch.randint(0, core.num_images, (len(first),), generator=self.generator).to(first.device)
        counts: list[int] = []
        for rows in core.rows.split(size):
            if not counts:
                counts = (
                    torch.randperm(self.most - self.least + 1, generator=self.generator) + self.least
                ).tolist()
            count = counts.pop()
            batch = images[: len(rows)]
            core.quality.begin(rows, batch, torch.full_like(batch, self._price(count), dtype=torch.float64))
            minds = self._minds(count, len(rows))
            _, x0, seen = self._walk(batch, minds)
            quality = core.quality.score(rows, x0).double()
            for spent, situation in enumerate(seen, 1):
                stuck = (minds.at(spent) == count) & (minds.turn <= spent)
                self.memory.add(situation, stuck.nonzero().squeeze(1), count, quality.detach().cpu())
            told.append([float(quality.detach().mean()), float(count), *self._step(-quality.mean())])
            core.quality.end(rows, x0.detach())
            sizes.append(len(rows))
        self.num_decisions += len(core.rows) * (len(core.walk.grid) - 1)
        share = torch.tensor(sizes, dtype=torch.float64) / len(core.rows)
        names = ("rollout/ep_quality_mean", "rollout/ep_nfe_mean", "train/gradient_norm", "train/worth_loss")
        return dict(zip(names, (torch.tensor(told).double().T @ share).tolist(), strict=True))

    def _price(self, count: int) -> float:
        """A price that stands for a number of evaluations: what is generated with it is a set of its own."""
        low, high = (math.log(max(price, LOWEST_PRICE)) for price in self.core.prices)
        return math.exp(high + (count - self.least) / max(self.most - self.least, 1) * (low - high))

    def _minds(self, count: int, rows: int) -> Minds:
        """Of so many rows, which all end with ``count`` evaluations."""

        def drawn(high: Tensor) -> Tensor:
            return (torch.rand(rows, generator=self.generator) * high).long()

        two = torch.full((rows,), 2)
        first = (count + 2 * drawn(two) - 1).clamp(self.least, self.most)
        first = torch.where(torch.rand(rows, generator=self.generator) < _FICKLE, first, count)
        turn = 1 + drawn(first.clamp(max=count))
        return Minds(first, torch.where(first == count, 1, turn), count)

    def _walk(self, images: Tensor, minds: Minds) -> tuple[Tensor, Tensor, list[Shown]]:
        """The times of evaluations of images (R,), (R, K), the results, and what each evaluation showed."""
        grid = self.core.walk.grid
        span = grid.lam[-1] - grid.lam[0]
        index = torch.full_like(images, len(grid) - 1)  # any: plans are the same up to the next evaluation
        price = torch.ones_like(images, dtype=torch.float64)
        times = [grid.times[:1].expand(len(images))]
        rows = self.process.timed(images, times[0], recompute=bool(self.hyperparameters["recompute"]))
        situations = []
        for spent in range(1, minds.final + 1):
            evidence = _detached(rows.evidence())
            observation = observe_from(grid, index, rows.lam_anchor, rows.nfe, price, evidence).cpu()
            seen = shown(observation, len(grid))
            situations.append(replace(seen, entries=seen.entries.detach()))
            count = minds.at(spent)
            if torch.is_grad_enabled():
                self.timing.meet(seen, count)
                self.worth.meet(seen)
            if spent == minds.final:
                break
            planned = self.timing(seen, count).to(grid.lam)
            times.append(self.process.time_of(grid.lam[0] + span * planned))
            rows.advance(times[-1])
        return torch.stack(times, 1), rows.x0(), situations

    def _step(self, loss: Tensor) -> tuple[float, float]:
        """One step down the loss, and one nearer to what is remembered; the loss's slope and what was off."""
        self.optimizer.zero_grad()
        norm = torch.zeros(())
        if self.most > 1 and loss.grad_fn is not None:
            loss.backward(inputs=list(self.timing.parameters()))
            norm = nn.utils.clip_grad_norm_(self.timing.parameters(), self.hyperparameters["max_grad_norm"])
            if not bool(torch.isfinite(norm)):
                raise UserError("gradients through the sampler are not finite: lower max_nfe")
        for _ in range(4):
            spent, entries, count, worth = self.memory.lesson(self.generator)
            guess = self.worth(spent, entries).gather(1, (count - self.least).unsqueeze(1)).squeeze(1)
            off = (guess - worth).square().mean() / worth.var().clamp(min=1e-6)
            off.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(norm), float(off.detach())

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Begin where ``policy`` ended, one that plans as many evaluations."""
        if not isinstance(policy, Stepper) or policy.info.evaluations != [self.least, self.most]:
            raise UserError(
                f"cannot start from '{policy.info.algo}': 'pathwise' needs a policy of its own that plans "
                f"{self.least} to {self.most} evaluations"
            )
        self.timing.load_state_dict(policy.timing.state_dict())
        self.worth.load_state_dict(policy.worth.state_dict())
        for network in (self.timing.actor, self.worth.network):
            blind(network, str(self.hyperparameters["sees"]))

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        lam = self.core.walk.grid.lam
        return Stepper(
            replace(info, evaluations=[self.least, self.most]),
            deepcopy(self.timing),
            deepcopy(self.worth),
            (lam - lam[0]) / (lam[-1] - lam[0]),
            projection,
        )


def _detached(evidence: Evidence) -> Evidence:
    return Evidence(**{field.name: getattr(evidence, field.name).detach() for field in fields(Evidence)})
