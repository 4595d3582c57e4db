"""Policy gradients with siblings: what a decision was worth is told by the same image drawn otherwise.

How good an image can become depends on its noise far more than on when the network was evaluated, and a
critic that sees ten numbers cannot know it. So episodes come in groups that share noise and price; an
advantage is compared with the mean of its siblings' at the same point (leave one out: RLOO, Kool et al. 2019,
which leaves the gradient unbiased), and what the noise did to all of them cancels. The update is PPO's.

Shapes: R = rows, G to a group; T = decisions of an episode; D observation entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import make_network
from agents.own import OwnLearner
from agents.policy import LearnedPolicy
from agents.start import fit_critic
from envs.errors import UserError


def sibling_advantages(advantages: Tensor, group: int) -> Tensor:
    """(T, R) advantages minus the mean of the other G − 1 of each group of neighbouring rows."""
    if group == 1:
        return advantages
    grouped = advantages.unflatten(1, (-1, group))
    others = (grouped.sum(2, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten(1)


def advantages(rewards: Tensor, values: Tensor, trace: float) -> Tensor:
    """Generalised advantages, (T, R), of whole episodes with γ = 1 (Schulman et al. 2016, eq. 16)."""
    found = torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[0])
    next_value = torch.zeros_like(values[0])
    for t in reversed(range(len(rewards))):
        after = rewards[t] + next_value - values[t] + trace * after
        next_value = values[t]
        found[t] = after
    return found


class RLOOLearner(OwnLearner):
    """Learns from groups of ``group`` siblings, with a critic."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "final_rate": 0.1,
        "group": 4,
        "n_epochs": 6,
        "minibatches": 4,
        "clip_range": 0.2,
        "gae_lambda": 0.98,
        "ent_coef": 0.001,
        "max_grad_norm": 0.5,
        "initial_nfe": 5.0,
        "sees": "sample",
    }

    def _check(self) -> None:
        group = int(self.hyperparameters["group"])
        if group < 1:
            raise UserError(f"group must be at least 1, not {group}")
        if self.env.num_envs % group:
            raise UserError(f"num_envs ({self.env.num_envs}) must be a multiple of the group ({group})")

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Actor and critic."""
        return super()._make_networks(inputs) | {"critic": make_network(inputs, 1, 1.0)}

    @property
    def critic(self) -> nn.Sequential:
        """From observations to what is yet to be earned."""
        return self._layered("critic")

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """The actor gets its weights, the critic learns what they earn."""
        super().start_from(policy, seed)
        fit_critic(
            lambda seen: self.critic(seen).squeeze(-1),
            list(self.critic.parameters()),
            self.core,
            policy.probabilities,
            seed,
        )
        self.core.reset(seed)

    def _round(self, left: float) -> dict[str, float]:
        """One rollout of whole episodes and the update that it allows."""
        observations, actions, rewards, chosen = self._rollout()
        h = self.hyperparameters
        with torch.no_grad():
            values = self.critic(observations).squeeze(-1)
        gains = advantages(rewards, values, h["gae_lambda"])
        targets = (gains + values).flatten()
        gains = sibling_advantages(gains, int(h["group"])).flatten()
        gains = (gains - gains.mean()) / (gains.std() + 1e-8)
        flat, taken, before = observations.flatten(0, 1), actions.flatten(), chosen.flatten()
        size = -(-len(flat) // int(h["minibatches"]))
        losses = []
        for _ in range(int(h["n_epochs"])):
            for part in torch.randperm(len(flat), generator=self.generator).split(size):
                losses.append(self._update(flat[part], taken[part], before[part], gains[part], targets[part]))
        self.num_decisions += len(flat)
        policy_loss, value_loss, entropy, moved = torch.tensor(losses).mean(0).tolist()
        returns = rewards.sum(0)
        return {
            "rollout/ep_rew_mean": float(returns.mean()),
            "rollout/ep_nfe_mean": float(actions.sum(0).double().mean()) + 1,
            "train/policy_gradient_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy": entropy,
            "train/approx_kl": moved,
            "train/explained_variance": 1 - float((targets - values.flatten()).var() / targets.var()),
        }

    @torch.no_grad()
    def _rollout(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observations (T, R, D), actions, rewards and log probabilities (T, R) of one episode a row."""
        core, rows = self.core, self.core.rows
        group = int(self.hyperparameters["group"])
        words = torch.randint(0, 2**32, (len(rows) // group,), generator=self.generator)
        core.seed(rows, words.repeat_interleave(group).to(rows.device))
        core.begin(rows)
        seen, acts, gained, said = [], [], [], []
        for _ in range(len(core.walk.grid) - 1):
            observation = core.walk.observe(rows).cpu()
            log_p = torch.log_softmax(self.actor_network(observation), -1)
            u = torch.rand(len(rows), generator=self.generator)
            action = (u < log_p[:, 1].exp()).long()
            seen.append(observation)
            acts.append(action)
            said.append(log_p.gather(1, action.unsqueeze(1)).squeeze(1))
            gained.append(core.step(rows, action.to(rows.device)).reward.float().cpu())
        return torch.stack(seen), torch.stack(acts), torch.stack(gained), torch.stack(said)

    def _update(
        self, observation: Tensor, action: Tensor, before: Tensor, gain: Tensor, target: Tensor
    ) -> tuple[float, float, float, float]:
        """One clipped step (Schulman et al. 2017, eq. 7); losses, entropy and how far the policy moved."""
        h = self.hyperparameters
        log_p = torch.log_softmax(self.actor_network(observation), -1)
        now = log_p.gather(1, action.unsqueeze(1)).squeeze(1)
        ratio = (now - before).exp()
        clipped = ratio.clamp(1 - h["clip_range"], 1 + h["clip_range"])
        policy_loss = -torch.minimum(ratio * gain, clipped * gain).mean()
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        value_loss = (self.critic(observation).squeeze(-1) - target).square().mean()
        loss = policy_loss + 0.5 * value_loss - h["ent_coef"] * entropy
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), h["max_grad_norm"])
        self.optimizer.step()
        moved = (ratio - 1 - (now - before)).mean()
        return (
            float(policy_loss.detach()),
            float(value_loss.detach()),
            float(entropy.detach()),
            float(moved.detach()),
        )
