"""What an agent is: it gives probabilities, and the engine draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


class TimeScale(Protocol):
    """A noise schedule, as far as spacing times needs it: half log-SNR at real times, and back."""

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR at times ``t``."""

    def time_of(self, lam: Tensor) -> Tensor:
        """The times whose half log-SNR is ``lam``."""


@dataclass(frozen=True)
class Budget:
    """What a baseline is made from.

    Args:
        nfe: Mean evaluations per image to spend.
        t_start: Where the model's grid begins.
        t_end: Where it ends.
        num_decisions: N, points of the decision grid, for agents that decide on one.
        scale: The model's noise schedule, for agents that space times by noise.
    """

    nfe: float
    t_start: float
    t_end: float
    num_decisions: int
    scale: TimeScale | None = None


class Agent(Protocol):
    """Says how likely it is to evaluate each sample where it stands.

    The engine evaluates where ``u(seed, image, time) < p``: so packing, batch size and device count change
    no decision. ``times`` is a grid of the agent's own (None: the engine's decision grid); ``observes`` tells
    whether it needs observations at all.
    """

    name: str
    times: Tensor | None
    observes: bool

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,), for observations (R, D); D is 0 where the agent does not observe."""


@runtime_checkable
class PlanningAgent(Agent, Protocol):
    """An agent that knows which point comes next as soon as it has seen an evaluation.

    It is asked once after each, with the observation of the point that follows; ``probabilities`` is 0 up to
    the point that it answers and 1 there.
    """

    def following(self, observation: Tensor, coins: Tensor) -> Tensor:
        """The points of the grid that samples evaluate next, (R,) int64; N where they are done.

        ``coins`` (R,): uniform on [0, 1), a sample's own, the same each time that it is asked about.
        """


@runtime_checkable
class OrderingAgent(Agent, Protocol):
    """An agent that may choose orders: on how many evaluations a multistep jump looks back at most.

    Every point of its own grid has one, that of the jump which leads there; where the same time is to be
    reached by jumps of two orders, the grid holds two points next to each other.
    """

    orders: Tensor | None
    """(N,) int64 of the points of ``times``; None: the solver's own everywhere."""


def orders_of(agent: Agent) -> Tensor | None:
    """The orders of an agent's jumps to the points of its grid, (N,); None: the solver's own."""
    return agent.orders if isinstance(agent, OrderingAgent) else None


@runtime_checkable
class RecurrentAgent(Agent, Protocol):
    """An agent that remembers what it saw of a sample: a state per sample, handed in and out.

    It is shown a sample at every point of the grid after the first, in order; whoever walks the sample keeps
    the state. ``probabilities`` answers as at a sample's first decision.
    """

    def initial_state(self, count: int) -> Tensor:
        """(count, S) states of samples that have decided nothing yet."""

    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """P(evaluate), (R,), and the states after it, (R, S), for observations (R, D) and states (R, S)."""
