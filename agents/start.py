"""Beginning where another policy ended: its weights for the actor, and a critic that knows what they earn.

A critic that knows nothing would drive a good actor away from where it stands in the first updates.
Shapes: R = rows; T = decisions of an episode; D observation entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.mdp import StepDropCore

ROUNDS = 4  # of rollouts that the critic learns from
_EPOCHS = 20
_BATCH = 2048
_LEARNING_RATE = 3e-3

Layers = Sequence[tuple[Tensor, Tensor]]


def copy_layers(into: Layers, layers: Layers) -> None:
    """Copy (weight, bias) pairs; :class:`UserError` where the networks differ."""
    shapes = [tuple(w.shape) for w, _ in into], [tuple(w.shape) for w, _ in layers]
    if shapes[0] != shapes[1]:
        raise UserError(f"cannot start from a policy of layers {shapes[1]}: these are {shapes[0]}")
    with torch.no_grad():
        for (weight, bias), (new_weight, new_bias) in zip(into, layers, strict=True):
            weight.copy_(new_weight)
            bias.copy_(new_bias)


@torch.no_grad()
def experience(
    core: StepDropCore, probabilities: Callable[[Tensor], Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Observations (M, D) of :data:`ROUNDS` episodes a row, and what came after them, (M,), with γ = 1."""
    rows = core.rows
    seen, gained = [], []
    for _ in range(ROUNDS):
        core.seed(rows, torch.randint(0, 2**32, (len(rows),), generator=generator).to(rows.device))
        core.begin(rows)
        rewards = []
        for _ in range(len(core.walk.grid) - 1):
            observation = core.walk.observe(rows).cpu()
            action = torch.rand(len(rows), generator=generator) < probabilities(observation)
            seen.append(observation)
            rewards.append(core.step(rows, action.long().to(rows.device)).reward.float().cpu())
        gained.append(torch.stack(rewards).flip(0).cumsum(0).flip(0).flatten())
    return torch.cat(seen), torch.cat(gained)


def fit_critic(
    values: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    core: StepDropCore,
    probabilities: Callable[[Tensor], Tensor],
    seed: int,
) -> None:
    """Let ``values`` (D-vectors to (M,)) tell what the policy earns, by changing ``parameters``."""
    generator = torch.Generator().manual_seed(seed)
    seen, gained = experience(core, probabilities, generator)
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    for _ in range(_EPOCHS):
        for part in torch.randperm(len(seen), generator=generator).split(_BATCH):
            loss = (values(seen[part]) - gained[part]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for parameter in parameters:
        parameter.grad = None
