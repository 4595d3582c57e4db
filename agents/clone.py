"""Cloning: a policy that does what schedules do that were found by search, or in hindsight.

Policy gradients from scratch first learn *that* to evaluate and then *when*, and settle where no single
change betters the reward. Searched schedules start far beyond that, and cloning costs little: the dearest
ones serve the lowest prices. What the clone cannot know beforehand, an oracle's choice for a sample's own
noise, it learns as far as its observation tells it (Pomerleau 1989; strays: DART, Laskey et al. 2017).

Shapes: R = rows; T = decisions of an episode; D observation entries; E = experts; N = points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import layers_of, make_network, sharpen
from agents.fixed import FixedSchedule
from agents.own import OwnLearner
from agents.planned import Mixture, Oracle, read_plan
from envs.errors import UserError
from envs.sb3 import StepDropVecEnv

Expert = FixedSchedule | Mixture | Oracle


def marks(times: Tensor, grid: Tensor) -> Tensor:
    """(N,) bool: the grid points next to ``times``, each at another one, the first always."""
    taken = torch.zeros(len(grid), dtype=torch.bool)
    taken[0] = True
    for t in times[1:]:
        order = (grid - t).abs().argsort()
        taken[next(int(k) for k in order if not taken[k])] = True
    return taken


class Experts:
    """Schedules on a decision grid, the dearest first.

    Args:
        experts: What is cloned.
        grid: (N,) decision times.
    """

    def __init__(self, experts: list[Expert], grid: Tensor) -> None:
        self.experts = sorted(experts, key=lambda expert: expert.nfe, reverse=True)
        grid = grid.double().cpu()
        self.masks = [
            torch.stack([marks(torch.tensor(times, dtype=torch.float64), grid) for times in _schedules(e)])
            for e in self.experts
        ]

    def plan(self, place: Tensor, images: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
        """What each row is to evaluate, (R, N), and whether that was meant for it, (R,).

        Args:
            place: (R,) where its price lies in the range of prices, 0 lowest to 1 highest.
            images: (R,) its noise.
            coins: (R,) uniform on [0, 1).
        """
        number = (place * len(self.experts)).long().clamp(0, len(self.experts) - 1)
        plan = torch.zeros(len(place), self.masks[0].shape[1], dtype=torch.bool)
        meant = torch.ones(len(place), dtype=torch.bool)
        for e, (expert, masks) in enumerate(zip(self.experts, self.masks, strict=True)):
            here = number == e
            if isinstance(expert, FixedSchedule):
                plan[here] = masks[0]
            else:
                plan[here] = masks[expert.choice(images[here], coins[here])]
            if isinstance(expert, Oracle):
                meant[here] = images[here] < len(masks)
        return plan, meant


def _schedules(expert: Expert) -> list[list[float]]:
    if isinstance(expert, FixedSchedule):
        assert expert.times is not None
        return [expert.times.tolist()]
    return expert.schedules


class CloneLearner(OwnLearner):
    """Imitates experts.

    Hyperparameters: ``experts`` are files of schedules, mixtures or oracles; neighbours in price blend into
    each other over a share ``blend`` of their bands; a share ``stray`` of the actions is not the expert's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "experts": [],
        "learning_rate": 3e-3,
        "final_rate": 0.02,
        "n_epochs": 6,
        "minibatches": 4,
        "stray": 0.02,
        "blend": 0.3,
        "smoothing": 0.01,
        "sees": "sample",
    }

    def __init__(self, env: StepDropVecEnv, **others: Any) -> None:
        super().__init__(env, **others)
        files = self.hyperparameters["experts"]
        if not files:
            raise UserError(
                'cloning needs experts: --hyperparameters "{experts: [FILE, …]}", files that search writes'
            )
        found = [read_plan(Path(str(file))) for file in files]
        self.experts = Experts(found, self.core.walk.grid.times)

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """The actor alone, and steep."""
        actor = make_network(inputs, 2, 0.01)
        sharpen(layers_of(actor)[0][0])
        return {"actor": actor}

    def _round(self, left: float) -> dict[str, float]:
        """One rollout of whole episodes, imitated."""
        h = self.hyperparameters
        observations, actions, meant, metrics = self._rollout()
        size = -(-len(actions) // int(h["minibatches"]))
        losses = []
        for _ in range(int(h["n_epochs"])):
            for part in torch.randperm(len(actions), generator=self.generator).split(size):
                part = part[meant[part]]
                if len(part):
                    losses.append(self._update(observations[part], actions[part]))
        self.num_decisions += len(actions)
        return metrics | {"train/imitation_loss": sum(losses) / max(len(losses), 1)}

    @torch.no_grad()
    def _rollout(self) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Observations (T·R, D), the experts' actions, whether they were meant (T·R,), learning curves."""
        core, rows, h = self.core, self.core.rows, self.hyperparameters
        core.seed(rows, torch.randint(0, 2**32, (len(rows),), generator=self.generator).to(rows.device))
        core.begin(rows)
        count = len(rows)
        low, high = core.prices
        prices = core.walk.price[rows].cpu()
        place = (prices / low).log() / math.log(high / low) if high > low else torch.full((count,), 0.5)
        place = place.double()
        blend = (torch.rand(count, generator=self.generator) - 0.5) * h["blend"]
        place = (place + blend / len(self.experts.experts)).clamp(0, 1)
        coins = torch.rand(count, generator=self.generator, dtype=torch.float64)
        plan, meant = self.experts.plan(place, core.images[rows].cpu(), coins)
        seen, wanted, total = [], [], torch.zeros(count)
        for k in range(1, len(core.walk.grid)):
            seen.append(core.walk.observe(rows).cpu())
            wanted.append(plan[:, k])
            stray = torch.rand(count, generator=self.generator) < h["stray"]
            action = torch.where(stray, ~plan[:, k], plan[:, k]).long().to(rows.device)
            total += core.step(rows, action).reward.float().cpu()
        metrics = {
            "rollout/ep_rew_mean": float(total.mean()),
            "rollout/ep_nfe_mean": float(core.walk.nfe[rows].double().mean()),
        }
        decisions = len(wanted)
        return torch.cat(seen), torch.cat(wanted).long(), meant.repeat(decisions), metrics

    def _update(self, observation: Tensor, action: Tensor) -> float:
        loss = nn.functional.cross_entropy(
            self.actor_network(observation), action, label_smoothing=self.hyperparameters["smoothing"]
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
