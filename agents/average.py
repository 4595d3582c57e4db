"""The average of what learns.

Where a price and those who pay it follow each other, neither settles: their mean does. Weights are averaged
(Polyak and Juditsky 1992) over all steps, until there are as many as the horizon, then exponentially.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_PREFIX = "average."


class Average:
    """Of the parameters of some modules.

    Args:
        modules: By the names that they are kept under.
        horizon: Steps that count.
    """

    def __init__(self, modules: Mapping[str, nn.Module], horizon: int) -> None:
        self.modules, self.horizon = dict(modules), horizon
        self.steps = 0
        self.means = {name: value.detach().clone() for name, value in _parameters(self.modules)}

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        self.steps += 1
        rate = 1 / min(self.steps, self.horizon)
        for name, value in _parameters(self.modules):
            self.means[name] += rate * (value - self.means[name])

    @torch.no_grad()
    def give(self, modules: Mapping[str, nn.Module]) -> None:
        """Give the averages to modules of the same names and shapes; before the first step there are none."""
        if self.steps:
            for name, value in _parameters(modules):
                value.copy_(self.means[name])

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs."""
        kept = {f"{_PREFIX}{name}": mean for name, mean in self.means.items()}
        return kept | {f"{_PREFIX}steps": torch.tensor(self.steps)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`; KeyError where there is none."""
        self.means = {name: tensors[f"{_PREFIX}{name}"] for name in self.means}
        self.steps = int(tensors[f"{_PREFIX}steps"])


def _parameters(modules: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
    return [
        (f"{prefix}.{name}", value)
        for prefix, module in modules.items()
        for name, value in module.named_parameters()
    ]
