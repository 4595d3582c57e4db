"""Solvers by reference: a registered name, and after it settings, ``ddim:eta=0.5`` or ``ddim:eta=0:early=1``.

A reference is what every option, policy, schedule file and result record calls a solver by. Settings are
separated by colons, so that a reference needs no quotes in a YAML list. What a solver may be told it says
itself: its class has ``settings``, setting → parser of its value. A solver without them is made as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from envs.errors import UserError
from envs.registry import unknown_name

if TYPE_CHECKING:
    from stepdrop_rl.solvers.base import Solver

Parser = Callable[[str], Any]


def number(text: str) -> float:
    """A number, or :class:`UserError`."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"needs a number, not '{text}'") from None


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

    name, *told = reference.split(":")
    make = SOLVERS.load(name)
    known: Mapping[str, Parser] = getattr(make, "settings", {})
    values: dict[str, Any] = {}
    for setting in told:
        key, equals, text = setting.partition("=")
        if not known:
            raise UserError(f"solver '{name}' takes no settings: '{reference}'")
        if key not in known:
            raise unknown_name(f"setting of solver '{name}'", key, known)
        if not equals or key in values:
            raise UserError(f"solver '{reference}': settings are written NAME=VALUE, each once")
        try:
            values[key] = known[key](text)
        except UserError as error:
            raise UserError(f"solver '{reference}': {key} {error}") from None
    solver: Solver = make(**values)
    return solver
