"""Registries: a name stands for ``"module:attribute"``, imported on use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from envs.errors import UserError

ALIKE = 0.5  # difflib's ratio, from which a name is suggested


def unknown_name(kind: str, name: str, known: Iterable[str], owner: str = "") -> UserError:
    """Return the error for an unknown name, with the nearest known one suggested, or all that are as near.

    Args:
        kind: What it names, for people.
        name: The name.
        known: Those that there are.
        owner: Whose they are, if not everyone's.
    """
    likeness = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in sorted(known)}
    best = max(likeness.values(), default=0.0)
    near = [f"'{other}'" for other, alike in likeness.items() if alike == best]
    hint = f"did you mean {' or '.join(near)}?" if best >= ALIKE else "known: " + ", ".join(likeness)
    whose = f" of {owner}" if owner else ""
    return UserError(f"unknown {kind} '{name}'{whose}; {hint}")


class Registry(Mapping[str, str]):
    """A read-only map from names to import paths; adding an entry is one line where it is made.

    Importing torch takes seconds, so that nothing is imported until :meth:`load` asks for it.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries = entries

    def __getitem__(self, name: str) -> str:
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        """Import and return what ``name`` stands for; :class:`UserError` if there is no such name."""
        module, _, attribute = self[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
