"""Solvers by reference: :mod:`envs.reference`, ``ddim:eta=0.5`` or ``ddim:eta=0:early=1``.

What a solver may be told it says itself: its class has ``settings``, setting → parser of its value. A solver
without them is made as it is.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from envs.errors import UserError
from envs.reference import number, read_reference

if TYPE_CHECKING:
    from stepdrop_rl.solvers.base import Solver


def ramp(text: str) -> float | tuple[float, float]:
    """A number, or two of them with a dash between: at the first and at the last time."""
    with contextlib.suppress(UserError):
        return number(text)
    first, _, last = text.partition("-")
    try:
        return float(first), float(last)
    except ValueError:
        raise UserError(f"needs a number or two (1-0), not '{text}'") from None


def make_solver(reference: str) -> Solver:
    """Return the solver that ``reference`` names; :class:`UserError`, in a line, where there is none."""
    from stepdrop_rl.solvers import SOLVERS

    name, values = read_reference(
        "solver", reference, lambda name: getattr(SOLVERS.load(name), "settings", {})
    )
    solver: Solver = SOLVERS.load(name)(**values)
    return solver


def require_lower(order: int | None, solver: Solver, name: str) -> None:
    """:class:`UserError` where an order, if there is one, is not below that of the solver called ``name``."""
    if order is not None and order >= solver.history:
        raise UserError(f"{name} has order {solver.history}: a search's order must be lower, not {order}")
