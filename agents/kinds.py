"""Whether hyperparameters are of the kind that their defaults are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envs.errors import UserError
from envs.registry import unknown_name

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def require_kinds(given: Mapping[str, Any], defaults: Mapping[str, Any], free: Iterable[str] = ()) -> None:
    """Refuse what no default is called, and what is of another kind than its default.

    Args:
        given: Hyperparameters.
        defaults: All that there are.
        free: Those that may be of several kinds, and check themselves.

    Raises:
        UserError: There is such a one.
    """
    for name, value in given.items():
        if name not in defaults:
            raise unknown_name("hyperparameter", name, defaults)
        default = defaults[name]
        if name in free:
            continue
        if not isinstance(default, list | tuple):
            if not _fits(value, type(default)):
                raise UserError(f"{name} must be {_NAMES[type(default)]}, not {value!r}")
        elif not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a list, not {value!r}")
        elif default and not all(_fits(one, type(default[0])) for one in value):
            raise UserError(f"{name} must be a list, each of them {_NAMES[type(default[0])]}, not {value!r}")


def _fits(value: Any, kind: type) -> bool:
    """Whole numbers are numbers, truth is none."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
