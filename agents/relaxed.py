"""Learnable skip probabilities by gradients through the sampler: a relaxed Bernoulli gate at every point.

A gate is a binary concrete variable (Maddison et al. 2017, appendix B; Jang et al. 2017), with u uniform and
p = P(evaluate) the policy's answer:

    g = sigmoid((logit p + log u − log(1 − u))/temperature),      P(g > ½) = p, whatever the temperature.

The trajectory is differentiable in its gates (:class:`envs.protocols.GatedTrajectories`), so what is made
small is the loss itself, with no critic and no score function:

    −Φ(end) + price·Σ g.

``gates: relaxed`` walks with g as it is, falling to 0 and 1 as the temperature does (solvers of order 1);
``straight_through`` walks with [g > ½], which is the decision problem itself, and takes g's gradient;
``auto`` is the first where the process allows it. With ``sees: time`` it learns a probability per timestep;
see :data:`agents.actor.SIGHTS`. A round costs N network calls an image (skipped or not), again as many and a
backward pass for gradients.

Shapes: R rows; N points of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.through import ThroughSampler
from envs.errors import UserError
from envs.observation import observe_from
from envs.registry import unknown_name
from envs.sb3 import StepDropVecEnv

GATES = ("auto", "relaxed", "straight_through")
_EDGE = 1e-6  # u stays this far from 0 and 1


def gate(margin: Tensor, u: Tensor, temperature: float, *, whole: bool) -> Tensor:
    """(R,) gates for logits ``margin`` and uniform ``u``; ``whole``: 0 or 1, with the relaxed gradient."""
    u = u.clamp(_EDGE, 1 - _EDGE)
    relaxed = torch.sigmoid((margin + torch.log(u) - torch.log1p(-u)) / temperature)
    if not whole:
        return relaxed
    return (relaxed.detach() > 0.5).to(relaxed.dtype) + (relaxed - relaxed.detach())


class RelaxedLearner(ThroughSampler):
    """Learns by gradients through its gates; the batch's process must be differentiable."""

    algo = "relaxed"
    lengthens = "env.num_decisions"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 3e-3,
        "final_rate": 0.1,
        "batch_size": 32,
        "temperature": 0.67,
        "final_temperature": 0.2,
        "ent_coef": 0.001,
        "max_grad_norm": 0.5,
        "initial_nfe": 5.0,
        "gates": "auto",
        "recompute": True,
        "sees": "sample",
    }

    def __init__(self, env: StepDropVecEnv, **others: Any) -> None:
        super().__init__(env, **others)
        h = self.hyperparameters
        if h["gates"] not in GATES:
            raise unknown_name("gates", str(h["gates"]), GATES)
        if not 0 < h["final_temperature"] <= h["temperature"]:
            raise UserError(
                "temperatures must be positive and fall: "
                f"temperature {h['temperature']}, final_temperature {h['final_temperature']}"
            )
        if h["gates"] == "relaxed" and not self.process.relaxes:
            raise UserError(
                "this solver looks back on several evaluations and has no relaxed gates: "
                "give it gates: straight_through, or solve by ddim"
            )
        self.whole = h["gates"] == "straight_through" or not self.process.relaxes

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row, a step of the optimiser for every ``batch_size`` of them."""
        core, h = self.core, self.hyperparameters
        temperature = h["final_temperature"] + (h["temperature"] - h["final_temperature"]) * left
        words = torch.randint(0, 2**32, (len(core.rows),), generator=self.generator)
        core.seed(core.rows, words.to(core.rows.device))
        core.begin(core.rows)
        told, sizes = [], []
        for rows in core.rows.split(int(h["batch_size"])):
            reward, spent, entropy, x0 = self._walk(rows, temperature)
            loss = -reward.mean() - h["ent_coef"] * entropy
            norm = self._descend(loss, self.parameters())
            core.quality.end(rows, x0.detach())
            told.append([*(float(v.detach()) for v in (reward.mean(), spent.mean(), entropy)), norm])
            sizes.append(len(rows))
        self.num_decisions += len(core.rows) * (len(core.walk.grid) - 1)
        share = torch.tensor(sizes, dtype=torch.float64) / len(core.rows)
        reward_mean, spent_mean, entropy_mean, norm_mean = (torch.tensor(told).double().T @ share).tolist()
        return {
            "rollout/ep_rew_mean": reward_mean,
            "rollout/ep_nfe_mean": spent_mean,
            "train/entropy": entropy_mean,
            "train/gradient_norm": norm_mean,
            "train/temperature": temperature,
        }

    def _walk(self, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows' rewards (R,) and evaluations (R,), the mean entropy of their gates, and their results."""
        core = self.core
        grid, price = core.walk.grid, core.walk.price[rows]
        gated = self.process.gated(
            core.images[rows], grid.times, recompute=bool(self.hyperparameters["recompute"])
        )
        entropies = []
        for point in range(1, len(grid)):
            index = torch.full_like(rows, point)
            seen = observe_from(grid, index, gated.lam_anchor, gated.nfe, price, gated.evidence())
            logits = self.actor_network(seen.cpu())
            u = torch.rand(len(rows), generator=self.generator)
            gates = gate(logits[:, 1] - logits[:, 0], u, temperature, whole=self.whole)
            gated.advance(gates.to(rows.device))
            log_p = torch.log_softmax(logits, -1)
            entropies.append(-(log_p.exp() * log_p).sum(-1).mean())
        x0 = gated.x0()
        quality = core.quality.score(rows, x0).double()
        if torch.is_grad_enabled():
            self._need_slope(quality)
        reward = quality - core.phi[rows] - price * (gated.nfe - 1)
        return reward, gated.nfe, torch.stack(entropies).mean(), x0
