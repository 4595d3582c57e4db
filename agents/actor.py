"""The small network of a policy: how it begins, what it may see, and how it and its optimiser are kept.

Shapes: R observations (R, D); two outputs: skip, evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from agents.policy import Layers
from envs.observation import ENTRIES
from envs.registry import unknown_name

_WIDTHS = (64, 64)

_TIME = ("position", "lam", "log_price")
SIGHTS: dict[str, tuple[str, ...] | None] = {
    "sample": None,
    "schedule": (*_TIME, "lam_since_anchor", "evaluations"),
    "time": _TIME,
}
"""What the policy may see: everything; its own schedule so far, but nothing that the sample shows (a mixture
of whole schedules); or where it stands alone (a probability per timestep). The critic sees everything."""


_SHARPNESS = {"position": 16.0, "lam": 16.0, "lam_since_anchor": 16.0, "evaluations": 16.0, "log_price": 8.0}


def sharpen(weight: Tensor) -> None:
    """Scale a first layer's fresh weights (width, D) to what the entries of an observation are good for.

    Where a sample stands is told by entries that change by 1/N from a grid point to the next, and a schedule
    changes from never to always within a point or two. Networks of unit slope imitate that late, or not at
    all; steeper ones, where they begin, do. (Policy gradients that begin steep settle on whatever schedule
    chance gave them: one training seed gained by it, another lost far more.)
    """
    scales = torch.ones(weight.shape[1])
    for i, entry in enumerate(ENTRIES):
        scales[i] = _SHARPNESS.get(entry.name, 1.0)
    with torch.no_grad():
        weight.mul_(scales.to(weight.device))


def make_network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Tanh layers with orthogonal weights, as PPO's are usually begun."""
    layers: list[nn.Module] = []
    for width in _WIDTHS:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            nn.init.zeros_(layer.bias)
    nn.init.orthogonal_(layers[-1].weight, gain)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def start_at(actor: Layers, nfe: float, num_points: int) -> None:
    """Let an untrained policy spend ``nfe`` on average on a grid of ``num_points``.

    Where that is little it is cheap to roll out, and built up, not cut down.
    """
    rate = min(max((nfe - 1) / (num_points - 1), 0.01), 0.99)
    with torch.no_grad():
        actor[-1][1].copy_(torch.tensor([0.0, math.log(rate / (1 - rate))]))


def blind(actor: nn.Sequential, sees: str, entries: int) -> None:
    """Let the policy see no more than it may: weights of the other entries are 0 and stay 0.

    Args:
        actor: What is observed comes first among its inputs; what it is told beside that it keeps.
        sees: One of :data:`SIGHTS`.
        entries: How many of the inputs are observed.
    """
    if sees not in SIGHTS:
        raise unknown_name("sees", sees, SIGHTS)
    names = SIGHTS[sees]
    if names is not None:
        seen = [i for i, entry in enumerate(ENTRIES) if entry.name in names]
        see_only(actor, [*seen, *range(entries, _first(actor).in_features)])


def see_only(actor: nn.Sequential, inputs: Sequence[int]) -> None:
    """Weights of all but these inputs are 0 and stay 0."""
    weight = _first(actor).weight
    mask = torch.zeros_like(weight)
    mask[:, list(inputs)] = 1.0
    with torch.no_grad():
        weight.mul_(mask)
    weight.register_hook(lambda gradient: gradient * mask)


def _first(actor: nn.Sequential) -> nn.Linear:
    first = actor[0]
    assert isinstance(first, nn.Linear)
    return first


def layers_of(modules: Iterable[nn.Module]) -> Layers:
    """(weight, bias) of every linear layer: its own, which learn."""
    return [(module.weight, module.bias) for module in modules if isinstance(module, nn.Linear)]


def copied(layers: Layers) -> Layers:
    """The layers as they are now."""
    return [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, which is taken off."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Go on from :func:`optimizer_state`."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
