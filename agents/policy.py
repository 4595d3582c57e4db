"""A learned policy: a small network from observations to P(evaluate), as safetensors + JSON.

The folder holds ``policy.safetensors`` and ``policy.json``; nothing in it is ever unpickled, and what it was
trained for (observation version, grid, solver, model) is checked, not guessed.
Shapes: R samples; D observation entries; F₀ network features, F of them after projection; H numbers that a
recurrent policy remembers, and as many that it shows its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.observation import ENTRIES, VERSION, Projection

SCHEMA = "stepdrop_rl.policy/1"
Layers = list[tuple[Tensor, Tensor]]
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """What a policy was trained for.

    Args:
        algo: Learning algorithm.
        activation: Between its layers.
        output: "softmax" (two logits), "greedy" (two action values) or "time" (of the next evaluation).
        dataset: Data set of the model.
        model_hash: Content hash of the model's weights.
        solver: Name of the solver.
        times: Its decision grid.
        prices: Smallest and largest price it was trained at.
        num_features: F.
        features: Names of the network's features that the observation shows, where F is not 0.
        memory: H, width of the LSTM before its layers; 0: it remembers nothing.
        evaluations: Fewest and most of a policy that plans its next one; empty: it decides point by point.
        target_nfe: Mean evaluations per image that its one price was moved to meet, if it was.
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
    features: list[str] = field(default_factory=lambda: ["middle"])
    memory: int = 0
    evaluations: list[int] = field(default_factory=list)
    target_nfe: float | None = None
    price_table: list[list[float]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    observation_version: int = VERSION
    schema: str = SCHEMA


class LearnedPolicy:
    """An :class:`agents.base.Agent` that observes.

    Args:
        info: What it was trained for.
        layers: (weight, bias) of each layer; the last gives two numbers: skip, evaluate.
        projection: Of the network's pooled features; None where F is 0.
    """

    observes = True
    may_go_on = False  # beyond the end of the model's grid
    orders: Tensor | None = None  # of the jumps to the points of its grid, where it chooses them

    def __init__(
        self,
        info: PolicyInfo,
        layers: Sequence[tuple[Tensor, Tensor]],
        projection: Projection | None = None,
    ) -> None:
        self.info = info
        self.layers: Layers = [
            (weight.detach().float().cpu(), bias.detach().float().cpu()) for weight, bias in layers
        ]
        self.projection = projection
        self.name = info.algo
        self.whole_prices: list[float] = []  # at which it spends whole numbers on average, rising, if any
        self.times: Tensor | None = torch.tensor(info.times, dtype=torch.float64)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, 2) for skip, evaluate, from what enters the layers."""
        activation = _ACTIVATIONS[self.info.activation]
        self._follow(hidden.device)
        for i, (weight, bias) in enumerate(self.layers):
            hidden = nn.functional.linear(hidden, weight, bias)
            if i + 1 < len(self.layers):
                hidden = activation(hidden)
        return hidden

    def _follow(self, device: torch.device) -> None:
        """Move to where the observations are, once: a memory steps point by point."""
        if self.layers[0][0].device != device:
            self.layers = [(weight.to(device), bias.to(device)) for weight, bias in self.layers]

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,)."""
        return self._chance(self.logits(observation))

    def _chance(self, logits: Tensor) -> Tensor:
        margin = logits[:, 1] - logits[:, 0]
        return torch.sigmoid(margin) if self.info.output == "softmax" else (margin > 0).float()

    def price_at(self, nfe: float) -> float | None:
        """The price at which it spends ``nfe`` evaluations at most; None: that must be found out."""
        return None

    def habit(self, count: int) -> Tensor | None:
        """Points where it evaluates samples that show nothing unusual, (count,); None: no plan is made."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored."""
        named = {}
        for i, (weight, bias) in enumerate(self.layers):
            named[f"layers.{i}.weight"], named[f"layers.{i}.bias"] = weight, bias
        if self.projection is not None:
            named["projection.matrix"], named["projection.mean"] = self.projection[:2]
        return named


LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Parts of an LSTM cell as torch names and orders them: (4H, D), (4H, H), (4H,), (4H,)."""


class RecurrentPolicy(LearnedPolicy):
    """An :class:`agents.base.RecurrentAgent`: an LSTM cell whose output enters the layers.

    Its state is the cell's h and c side by side, (R, 2H).

    Args:
        info: What it was trained for; ``memory`` is H.
        cell: The parts that :data:`LSTM` names.
        layers: As of a :class:`LearnedPolicy`.
        projection: As of a :class:`LearnedPolicy`.
    """

    def __init__(
        self,
        info: PolicyInfo,
        cell: Sequence[Tensor],
        layers: Sequence[tuple[Tensor, Tensor]],
        projection: Projection | None = None,
    ) -> None:
        super().__init__(info, layers, projection)
        self.cell = [part.detach().float().cpu() for part in cell]

    def _follow(self, device: torch.device) -> None:
        super()._follow(device)
        if self.cell[0].device != device:
            self.cell = [part.to(device) for part in self.cell]

    def initial_state(self, count: int) -> Tensor:
        """Nothing seen yet: zeros, (count, 2H)."""
        return torch.zeros(count, 2 * self.info.memory)

    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """P(evaluate), (R,), and the state after this observation, (R, 2H)."""
        self._follow(observation.device)
        h, c = torch.lstm_cell(observation, state.chunk(2, dim=1), *self.cell)
        return self._chance(self.logits(h)), torch.cat((h, c), dim=1)

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,), at a sample's first decision."""
        return self.step(observation, self.initial_state(len(observation)).to(observation.device))[0]

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored."""
        return super().tensors() | {f"lstm.{name}": part for name, part in zip(LSTM, self.cell, strict=True)}


def build_policy(raw: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> LearnedPolicy:
    """Make a policy from what its folder holds; :class:`UserError` where the two do not fit."""
    from agents.fork import build_fork  # what these build is a LearnedPolicy
    from agents.stepper import build_stepper

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
        if not (len(info.times) >= 2 and len(info.prices) == 2 and len(info.evaluations) in (0, 2)):
            raise TypeError("its grid or its range of prices or evaluations")
        torch.tensor([*info.times, *info.prices], dtype=torch.float64)
        seen = len(ENTRIES) + info.num_features
        projection, fits = None, True
        if info.num_features:
            names = tuple(info.features)
            projection = Projection(tensors["projection.matrix"], tensors["projection.mean"], names)
            fits = projection.matrix.shape == (len(projection.mean), info.num_features)
        if fits and info.evaluations:
            build = build_fork if "plans" in tensors else build_stepper
            return build(info, tensors, projection)
        count = sum(name.startswith("layers.") and name.endswith(".weight") for name in tensors)
        layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(count)]
        cell = [tensors[f"lstm.{name}"] for name in LSTM] if info.memory else []
        fits &= info.activation in _ACTIVATIONS and layers[-1][0].shape[0] == 2
        fits &= layers[0][0].shape[1] == (info.memory or seen)
        wide = 4 * info.memory
        wanted = [(wide, seen), (wide, info.memory), (wide,), (wide,)]
        fits &= all(part.shape == shape for part, shape in zip(cell, wanted, strict=False))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{source} is damaged: {error} is missing or wrong") from None
    if not fits:
        raise UserError(f"{source} is damaged: its network does not fit the observation")
    if info.memory:
        return RecurrentPolicy(info, cell, layers, projection)
    return LearnedPolicy(info, layers, projection)


def describe(policy: LearnedPolicy) -> dict[str, Any]:
    """What ``policy.json`` holds."""
    return asdict(policy.info)
