"""References: a registered name, and after it settings, as ``ddim:eta=0.5`` or ``energy:effort=8``.

What an option, a file or a result record calls a thing by that may be told something. Settings are separated
by colons, so that a reference needs no quotes in a YAML list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from envs.errors import UserError
from envs.registry import unknown_name

Parser = Callable[[str], Any]


def number(text: str) -> float:
    """A number, or :class:`UserError`."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"needs a number, not '{text}'") from None


def read_reference(
    kind: str, reference: str, settings_of: Callable[[str], Mapping[str, Parser]]
) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings in ``reference``.

    Args:
        kind: What it names, for people.
        reference: The text.
        settings_of: From a name to what it may be told, setting → parser of its value.

    Raises:
        UserError: There is no such name or setting, or a value does not fit.
    """
    name, *told = reference.split(":")
    known = settings_of(name)
    values: dict[str, Any] = {}
    for setting in told:
        key, equals, text = setting.partition("=")
        if not known:
            raise UserError(f"{kind} '{name}' takes no settings: '{reference}'")
        if key not in known:
            raise unknown_name("setting", key, known, f"{kind} '{name}'")
        if not equals or key in values:
            raise UserError(f"{kind} '{reference}': settings are written NAME=VALUE, each once")
        try:
            values[key] = known[key](text)
        except UserError as error:
            raise UserError(f"{kind} '{reference}': {key} {error}") from None
    return name, values
