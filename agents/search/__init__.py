"""Schedules found by search: fixed times for every sample, made for one model, solver and budget.

A new method is a module with ``search(nfe, ground, seed) -> Found`` and a line here. What a method may ask of
the model is :class:`agents.search.base.Ground`; the noise it sees is that of training, never the judge's.
``ORACLES`` find a schedule for each of these noises, of no use on others; those of ``ORDER_1`` search with
order-1 (DDIM) jumps, whatever the solver that will run what they find. A method of ``LENGTHENED`` may be told
to search for longer, ``energy:effort=8``: with so many times its own network evaluations, roughly. One of
``ORDERED`` may be told to let jumps look back on fewer evaluations than the solver does, ``energy:order=2``.
One of ``TAUGHT`` may be told how much its teacher's results weigh, ``energy:teacher=0.03``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from envs.errors import UserError
from envs.reference import Parser, number, read_reference
from envs.registry import Registry

if TYPE_CHECKING:
    from agents.search.base import Search

SEARCHES = Registry(
    "search method",
    {
        "xue": "agents.search.xue:search",
        "gits": "agents.search.gits:search",
        "oss": "agents.search.oss:search",
        "oss_oracle": "agents.search.oss:search_per_sample",
        "ld3": "agents.search.ld3:search",
        "energy": "agents.search.energy:search",
        "blackbox": "agents.search.blackbox:search",
        "mixture": "agents.search.mixture:search",
    },
)

ORACLES = frozenset({"oss_oracle"})
ORDER_1 = frozenset({"gits", "oss", "oss_oracle"})
LENGTHENED = frozenset({"ld3", "energy", "blackbox", "mixture"})
ORDERED = frozenset({"ld3", "energy", "blackbox"})
TAUGHT = frozenset({"energy"})


class SearchReference(NamedTuple):
    """A method of search by name, how long it searches, and on how many evaluations jumps look back at most.

    ``order`` None: as many as the solver does. ``teacher`` None: the weight that the method gives it.
    """

    method: str
    effort: float = 1.0
    order: int | None = None
    teacher: float | None = None


def _effort(text: str) -> float:
    effort = number(text)
    if not 0 < effort < float("inf"):
        raise UserError(f"must be positive, not '{text}'")
    return effort


def _order(text: str) -> int:
    order = number(text)
    if not (1 <= order < float("inf") and order == int(order)):
        raise UserError(f"must be a whole number, 1 at least, not '{text}'")
    return int(order)


def _weight(text: str) -> float:
    weight = number(text)
    if not 0 <= weight < float("inf"):
        raise UserError(f"must be finite and 0 at least, not '{text}'")
    return weight


def _settings_of(method: str) -> Mapping[str, Parser]:
    SEARCHES[method]  # there must be one of this name
    known: dict[str, tuple[frozenset[str], Parser]] = {
        "effort": (LENGTHENED, _effort),
        "order": (ORDERED, _order),
        "teacher": (TAUGHT, _weight),
    }
    return {name: parser for name, (methods, parser) in known.items() if method in methods}


def read_search(reference: str) -> SearchReference:
    """What ``reference`` names; :class:`UserError` where there is no such method or setting."""
    method, values = read_reference("search method", reference, _settings_of)
    return SearchReference(method, **values)


def make_search(reference: str) -> Search:
    """Return the search that ``reference`` names; its order is the ground's matter.

    Raises:
        UserError: As of :func:`read_search`.
    """
    method, effort, _, teacher = read_search(reference)
    search = SEARCHES.load(method)
    settings = {"effort": effort} if method in LENGTHENED else {}
    found: Search = partial(search, **settings, **({} if teacher is None else {"teacher": teacher}))
    return found
