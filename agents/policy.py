"""A learned policy: a small network from observations to P(evaluate), as safetensors + JSON.

The folder holds ``policy.safetensors`` and ``policy.json``; nothing in it is ever unpickled, and what it was
trained for (observation version, grid, solver, model) is checked, not guessed.
Shapes: R samples; D observation entries; F network features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.observation import ENTRIES, VERSION

SCHEMA = "stepdrop_rl.policy/1"
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """What a policy was trained for.

    Args:
        algo: Learning algorithm.
        activation: Between its layers.
        output: "softmax" (two logits) or "greedy" (two action values).
        dataset: Data set of the model.
        model_hash: Content hash of the model's weights.
        solver: Name of the solver.
        times: Its decision grid.
        prices: Smallest and largest price it was trained at.
        num_features: F.
        price_table: ``[price, mean NFE]`` on validation noise, by rising price.
        training: How it was trained: seed, decisions, reward, judge's record.
    """

    algo: str
    activation: str
    output: str
    dataset: str
    model_hash: str
    solver: str
    times: list[float]
    prices: list[float]
    num_features: int = 0
    price_table: list[list[float]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    observation_version: int = VERSION
    schema: str = SCHEMA


class LearnedPolicy:
    """An :class:`agents.base.Agent` that observes.

    Args:
        info: What it was trained for.
        layers: (weight, bias) of each layer; the last gives two numbers: skip, evaluate.
        projection: (F₀, F) matrix and (F₀,) mean of the network's pooled features; None where F is 0.
    """

    observes = True

    def __init__(
        self,
        info: PolicyInfo,
        layers: Sequence[tuple[Tensor, Tensor]],
        projection: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.info = info
        self.layers = [
            (weight.detach().float().cpu(), bias.detach().float().cpu()) for weight, bias in layers
        ]
        self.projection = projection
        self.name = info.algo
        self.times: Tensor | None = torch.tensor(info.times, dtype=torch.float64)

    def logits(self, observation: Tensor) -> Tensor:
        """(R, 2) for skip, evaluate."""
        hidden = observation
        activation = _ACTIVATIONS[self.info.activation]
        for i, (weight, bias) in enumerate(self.layers):
            hidden = nn.functional.linear(hidden, weight.to(hidden.device), bias.to(hidden.device))
            if i + 1 < len(self.layers):
                hidden = activation(hidden)
        return hidden

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,)."""
        logits = self.logits(observation)
        margin = logits[:, 1] - logits[:, 0]
        return torch.sigmoid(margin) if self.info.output == "softmax" else (margin > 0).float()

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored."""
        named = {}
        for i, (weight, bias) in enumerate(self.layers):
            named[f"layers.{i}.weight"], named[f"layers.{i}.bias"] = weight, bias
        if self.projection is not None:
            named["projection.matrix"], named["projection.mean"] = self.projection
        return named


def build_policy(raw: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> LearnedPolicy:
    """Make a policy from what its folder holds; :class:`UserError` where the two do not fit."""
    if raw.get("schema") != SCHEMA:
        raise UserError(f"{source} has schema '{raw.get('schema')}', this version reads '{SCHEMA}'")
    if raw.get("observation_version") != VERSION:
        raise UserError(
            f"{source} was trained on observation version {raw.get('observation_version')}, "
            f"this version observes {VERSION}: train it again"
        )
    known = {name: raw[name] for name in PolicyInfo.__dataclass_fields__ if name in raw}
    try:
        info = PolicyInfo(**known)
        if not (len(info.times) >= 2 and len(info.prices) == 2):
            raise TypeError("its grid or its range of prices")
        torch.tensor([*info.times, *info.prices], dtype=torch.float64)
        count = sum(name.endswith(".weight") for name in tensors)
        layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(count)]
        projection = None
        if info.num_features:
            projection = (tensors["projection.matrix"], tensors["projection.mean"])
        width, out = layers[0][0].shape[1], layers[-1][0].shape[0]
        fits = (width, out) == (len(ENTRIES) + info.num_features, 2) and info.activation in _ACTIVATIONS
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{source} is damaged: {error} is missing or wrong") from None
    if not fits:
        raise UserError(f"{source} is damaged: its network does not fit the observation")
    return LearnedPolicy(info, layers, projection)


def describe(policy: LearnedPolicy) -> dict[str, Any]:
    """What ``policy.json`` holds."""
    return asdict(policy.info)
