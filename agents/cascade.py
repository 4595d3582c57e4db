"""Looks that follow one another: what the first decides, the next one goes on from.

Every look has a :class:`agents.gate.Gate` with A options. Those of a later look serve samples that went the
same way so far, so a plan has A^l rows at look l, and B = A^looks branches, in the order of their options:
branch (a₀·A + a₁)·A + … took option a₀ at the first look. Chances of branches are products, and what an
option is worth is what those behind it are worth on average: backward induction without drawing anything.

Shapes: R samples; P plans; A options; B branches; T = 1 + A + … looks of a plan, the first of them first; D
entries of what one shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.actor import under
from agents.gate import Gate


class Taken(NamedTuple):
    """Branches that samples take, (R, B) float64.

    Args:
        chances: While learning, where they spend what they should.
        choices: By a policy, which takes the best option at every look: 1 for that branch.
    """

    chances: Tensor
    choices: Tensor


class Cascade(nn.Module):
    """Gates of looks that follow one another.

    Args:
        plans: P.
        entries: D.
        more: By how many evaluations each option of the first look departs from the plan, (A,).
        looks: How many follow one another; options of later ones cost nothing more.
        networks: Of each look; every one serves P/networks plans.
    """

    def __init__(
        self, plans: int, entries: int, more: Sequence[int], looks: int = 1, networks: int = 1
    ) -> None:
        super().__init__()
        self.options, self.looks = len(more), looks
        first = Gate(plans, entries, more, networks)
        ahead = (
            Gate(plans * self.options**look, entries, [0] * self.options, networks)
            for look in range(1, looks)
        )
        self.gates = nn.ModuleList([first, *ahead])

    @property
    def nodes(self) -> list[range]:
        """Of the T looks, those that are first, second, …"""
        sizes = [self.options**look for look in range(self.looks)]
        return [range(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(self.looks)]

    @property
    def first(self) -> Gate:
        """The first look's."""
        gate = self.gates[0]
        assert isinstance(gate, Gate)
        return gate

    @property
    def layered(self) -> list[nn.Sequential]:
        """Networks of all looks."""
        return [actor for gate in (self.first, *self.ahead) for actor in gate.layered]

    @property
    def ahead(self) -> list[Gate]:
        """Those of later looks."""
        return [gate for gate in self.gates if isinstance(gate, Gate)][1:]

    def usual(self, plan: int, entries: Tensor) -> None:
        """Remember what samples show, (R, T, D), on their way along a plan."""
        for gate, nodes in zip(self.gates, self.nodes, strict=True):
            assert isinstance(gate, Gate)
            for way, node in enumerate(nodes):
                gate.usual(plan * len(nodes) + way, entries[:, node])

    def worths(self, plan: Tensor, entries: Tensor) -> list[Tensor]:
        """What options are worth, (R, A^look, A) a look, to samples of plans (R,) that show (R, T, D)."""
        found = []
        for gate, nodes in zip(self.gates, self.nodes, strict=True):
            row = plan.unsqueeze(1) * len(nodes) + torch.arange(len(nodes), device=plan.device)
            shown = entries[:, nodes.start : nodes.stop]
            found.append(gate(row.flatten(), shown.flatten(0, 1)).reshape(*row.shape, self.options))
        return found

    def taken(self, plan: Tensor, entries: Tensor) -> Taken:
        """Which branches samples of plans (R,) take that show (R, T, D)."""
        first, *later = self.worths(plan, entries)
        worth = first.squeeze(1)
        chances = self.first.chances(worth, self.first.price(worth, chance=True))
        price = torch.tensor(self.first.price(worth, chance=False))
        choices = nn.functional.one_hot(self.first.branches(worth, price), self.options).double()
        for ahead in later:
            chances = (chances.unsqueeze(2) * torch.softmax(ahead.double(), 2)).flatten(1)
            best = nn.functional.one_hot(ahead.argmax(2), self.options)
            choices = (choices.unsqueeze(2) * best).flatten(1)
        return Taken(chances, choices)

    def climb(self, plan: Tensor, entries: Tensor, gain: Tensor) -> Tensor:
        """What to climb, (R,), so that the mean gain, (R, B), of what is taken grows at equal cost."""
        first, *later = self.worths(plan, entries)
        worth = first.squeeze(1)
        for ahead in reversed(later):
            chances = torch.softmax(ahead.double(), 2)
            gain = (chances * gain.reshape(chances.shape)).sum(2)
        found = self.first.climb(worth, gain)
        reached = self.first.chances(worth, self.first.price(worth, chance=True)).detach()
        for gate, ahead in zip(self.ahead, later, strict=True):
            chances = torch.softmax(ahead.double(), 2)
            found = found + (reached * gate.barrier(ahead)).sum(1)
            reached = (reached.unsqueeze(2) * chances.detach()).flatten(1)
        return found

    def settle(self, plan: int, entries: Tensor, slack: float) -> None:
        """Find the price of a plan for what samples show, (R, T, D), on its way."""
        self.first.settle(plan, entries[:, 0], slack)

    def goes_on(self, look: int, plan: Tensor, branch: Tensor, entries: Tensor) -> Tensor:
        """The branches, (R,), that samples take at a look.

        Args:
            look: Which one.
            plan: (R,).
            branch: (R,) one that went the way they went.
            entries: (R, D) what they show.
        """
        way = branch // self.options ** (self.looks - look)
        row = plan * self.options**look + way
        gate = self.gates[look]
        assert isinstance(gate, Gate)
        option = gate.branches(gate(row, entries), gate.prices[row])
        return (way * self.options + option) * self.options ** (self.looks - look - 1)

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name, as they are stored."""
        return {
            f"{prefix}{name}": value
            for prefix, gate in zip(self._prefixes(), self.gates, strict=True)
            for name, value in gate.state_dict().items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over :meth:`tensors`; RuntimeError where they do not fit."""
        for prefix, gate in zip(self._prefixes(), self.gates, strict=True):
            own = under(tensors, prefix)
            gate.load_state_dict({_named(name): value for name, value in own.items()})

    def _prefixes(self) -> list[str]:
        return ["gate.", *(f"gate{look}." for look in range(1, self.looks))]


def looks_of(tensors: Mapping[str, Tensor]) -> int:
    """How many looks the policy had whose tensors these are."""
    looks = 1
    while f"gate{looks}.mean" in tensors:
        looks += 1
    return looks


def networks_of(tensors: Mapping[str, Tensor]) -> int:
    """How many networks each of its looks had."""
    found = {_named(name.removeprefix("gate.")) for name in tensors if name.startswith("gate.")}
    return max(sum(name.startswith("actors.") and name.endswith(".0.weight") for name in found), 1)


def _named(name: str) -> str:
    """What a gate calls a tensor: in older policies it had one network."""
    return f"actors.0.{name.removeprefix('actor.')}" if name.startswith("actor.") else name
