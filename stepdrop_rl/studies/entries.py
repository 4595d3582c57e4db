"""What results say of contenders: means, intervals, and differences over noise blocks and training seeds.

A result holds a metric's value in every block of noise; a policy has one result per training seed.
Differences are taken block by block, on the same noise; from a policy's own controls also seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepdrop_rl.studies.spread import Estimate, interval, interval_between

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A contender at a budget with a solver: the results of all its seeds.

    Args:
        contender: Who.
        solver: Reference of the solver.
        nfe: Budget.
        results: One per seed.
        control: What is taken away from the contender, or None.
    """

    contender: str
    solver: str
    nfe: float
    results: tuple[Result, ...]
    control: str | None = None

    @property
    def name(self) -> str:
        """For people: controls are "contender, control"."""
        return self.contender if self.control is None else f"{self.contender}, {label(self.control)}"

    def values(self, judge: str, metric: str) -> list[list[float]]:
        """Per seed, per block."""
        return [list(result["judges"][judge][metric]) for result in self.results]

    def estimate(self, judge: str, metric: str) -> Estimate:
        """Over blocks and seeds."""
        return interval(self.values(judge, metric))

    def mean(self, key: str) -> float:
        """Of a number that a result has once."""
        return sum(float(result[key]) for result in self.results) / len(self.results)

    @property
    def is_one_schedule(self) -> bool:
        """Whether every image got the same: at each time all are evaluated, or none."""
        return len(self.results) == 1 and set(self.results[0]["rates"]) <= {0.0, 1.0}


def difference(one: Entry, other: Entry, judge: str, metric: str) -> Estimate:
    """``one`` minus ``other``, paired by block; training seeds are independent of each other's."""
    return interval_between(one.values(judge, metric), other.values(judge, metric))


def difference_by_seed(one: Entry, other: Entry, judge: str, metric: str) -> Estimate:
    """``one`` minus ``other``, of the same policies: by block, and by seed where both have it."""
    ours, theirs = (
        dict(zip((r["seed"] for r in e.results), e.values(judge, metric), strict=True)) for e in (one, other)
    )
    rows = [(row, theirs[seed]) for seed, row in ours.items() if seed in theirs]
    return interval([[a - b for a, b in zip(*pair, strict=True)] for pair in rows])


def gather_entries(results: Iterable[Result]) -> tuple[list[Entry], list[str]]:
    """Group results by contender, solver and budget; and tell what could not be spent."""
    results = list(results)
    called = _short_names(results)
    groups: dict[Entry, list[Result]] = {}
    unreachable = []
    for result in results:
        head = Entry(called[result["name"]], result["solver"], result["nfe"], (), result["control"])
        if "unreachable" not in result:
            groups.setdefault(head, []).append(result)
        elif head.control in (None, "mode"):  # what is left of a policy is out of reach where the policy is
            unreachable.append(f"{head.name} at {head.nfe:g}, {head.solver}: {result['unreachable']}")
    return [replace(head, results=tuple(found)) for head, found in groups.items()], unreachable


def _short_names(results: Sequence[Result]) -> dict[str, str]:
    """What contenders are called: files by what all budgets share, where that tells them apart."""
    called: dict[str, str] = {}
    files: dict[tuple[str, str, float], dict[str, str]] = {}
    for result in results:
        name = result["name"]
        called[name] = name
        if name.endswith(".json"):
            short = Path(name).stem.removesuffix(f"-{result['nfe']:g}").removesuffix(f"-{result['solver']}")
            files.setdefault((short, result["solver"], result["nfe"]), {})[name] = short
    taken = set(called)
    for (short, *_), names in files.items():
        if len(names) == 1 and short not in taken:
            called |= names
    return called


def label(control: str) -> str:
    """A control's name for people."""
    return control.replace("_", " ")


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN where there is no whole."""
    return part / whole if whole else math.nan
