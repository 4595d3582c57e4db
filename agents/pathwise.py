"""Times of evaluations by gradients through the sampler: pathwise, no coin and no critic between.

A :class:`agents.stepper.Stepper` plans each next evaluation at a real time, and the trajectory is
differentiable in its times (:class:`envs.protocols.TimedTrajectories`). So for K evaluations, another K for
every batch of a round, what is made small is −Φ(end) itself. What an evaluation shows enters the next plan as
a number: its own slope in earlier times is left out; how a plan moves those after it is not.

A batch costs K network calls an image, again as many and a backward pass for gradients. The grid costs
nothing and may be as fine as one likes (``env.num_decisions``), but its points are counted as decisions, as
for all learners: on 128 points, 1,000 steps of 64 images are 8 million of them (``decisions``,
``judge_every``).

Shapes: R rows; N points of the grid; D observation entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import blind
from agents.planning import Tariff, Timing, shown
from agents.policy import LearnedPolicy, PolicyInfo
from agents.stepper import Stepper
from agents.through import ThroughSampler
from envs.errors import UserError
from envs.observation import Projection, observe_from
from envs.protocols import Evidence


class PathwiseLearner(ThroughSampler):
    """Learns times for ``min_nfe`` to ``max_nfe`` evaluations; the batch's process must be differentiable."""

    algo = "pathwise"
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
                "'pathwise' spends what it is told: give it min_nfe and max_nfe, no env.target_nfe"
            )
        if least < most and core.prices[0] == core.prices[1]:
            raise UserError(
                "prices tell 'pathwise' how many evaluations to spend: leave env.price out, "
                "or give it min_nfe and max_nfe alike"
            )
        super()._check()

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Times that are even."""
        least, most = int(self.hyperparameters["min_nfe"]), int(self.hyperparameters["max_nfe"])
        self.tariff = Tariff(least, most, self.core.prices)
        self.timing = Timing(least, most, inputs)
        return {"timing": self.timing}

    @property
    def actor_network(self) -> nn.Sequential:
        """From how far samples are from what is usual to z."""
        return self.timing.actor

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        # The habit is all samples' and learned faster than what departs from it.
        slow, fast = float(self.hyperparameters["learning_rate"]), float(self.hyperparameters["habit_rate"])
        return [(list(self.timing.actor.parameters()), slow), ([self.timing.habit], fast)]

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row, a step of the optimiser for every ``batch_size`` of them."""
        core, tariff = self.core, self.tariff
        told, sizes = [], []
        counts: list[int] = []
        for rows in core.rows.split(int(self.hyperparameters["batch_size"])):
            if not counts:
                counts = torch.randperm(tariff.most - tariff.least + 1, generator=self.generator).tolist()
            count = tariff.least + counts.pop()
            images = torch.randint(0, core.num_images, (len(rows),), generator=self.generator).to(rows.device)
            prices = torch.full_like(images, tariff.price(count), dtype=torch.float64)
            core.quality.begin(rows, images, prices)
            x0 = self._walk(images, prices, count)[1]
            quality = core.quality.score(rows, x0).double().mean()
            norm = 0.0
            if count > 1:
                self._need_slope(quality)
                norm = self._descend(-quality, self.parameters())
            core.quality.end(rows, x0.detach())
            told.append([float(quality.detach()), float(count), norm])
            sizes.append(len(rows))
        self.num_decisions += len(core.rows) * (len(core.walk.grid) - 1)
        share = torch.tensor(sizes, dtype=torch.float64) / len(core.rows)
        quality_mean, spent_mean, norm_mean = (torch.tensor(told).double().T @ share).tolist()
        return {
            "rollout/ep_quality_mean": quality_mean,
            "rollout/ep_nfe_mean": spent_mean,
            "train/gradient_norm": norm_mean,
        }

    def _walk(self, images: Tensor, prices: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The times of ``count`` evaluations of images (R,), (R, count), and their results."""
        grid = self.core.walk.grid
        span = grid.lam[-1] - grid.lam[0]
        index = torch.full_like(images, len(grid) - 1)  # any: plans are the same up to the next evaluation
        counts = torch.full((len(images),), count)
        times = [grid.times[:1].expand(len(images))]
        rows = self.process.timed(images, times[0], recompute=bool(self.hyperparameters["recompute"]))
        for _ in range(count - 1):
            evidence = _detached(rows.evidence())
            observation = observe_from(grid, index, rows.lam_anchor, rows.nfe, prices, evidence)
            seen = shown(observation.cpu(), len(grid))
            if torch.is_grad_enabled():
                self.timing.meet(seen, counts)
            planned = self.timing(seen, counts).to(grid.lam)
            times.append(self.process.time_of(grid.lam[0] + span * planned))
            rows.advance(times[-1])
        return torch.stack(times, 1), rows.x0()

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Begin where ``policy`` ended, one that plans as many evaluations."""
        wanted = [self.tariff.least, self.tariff.most]
        if not isinstance(policy, Stepper) or policy.info.evaluations != wanted:
            raise UserError(
                f"cannot start from '{policy.info.algo}': 'pathwise' needs a policy of its own that plans "
                f"{wanted[0]} to {wanted[1]} evaluations"
            )
        self.timing.load_state_dict(policy.timing.state_dict())
        blind(self.actor_network, str(self.hyperparameters["sees"]), self.entries)

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        lam = self.core.walk.grid.lam
        return Stepper(
            replace(info, evaluations=[self.tariff.least, self.tariff.most]),
            deepcopy(self.timing),
            (lam - lam[0]) / (lam[-1] - lam[0]),
            projection,
        )


def _detached(evidence: Evidence) -> Evidence:
    return Evidence(**{field.name: getattr(evidence, field.name).detach() for field in fields(Evidence)})
