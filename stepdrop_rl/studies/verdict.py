"""From results to claims: means, intervals, and paired differences over noise blocks and training seeds.

A result holds a metric's value in every block of noise; a policy has one result per training seed. Two
sources of chance, so two intervals: over blocks (of the mean over seeds) and over seeds (over blocks' means).
The wider one counts. Differences are taken block by block, on the same noise; from a policy's own controls
also seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stepdrop_rl.config import StudyConfig
from stepdrop_rl.metrics.blocks import block_mean, paired_difference
from stepdrop_rl.studies.plan import FULL

Result = Mapping[str, Any]


_FIXED = ("mean schedule", "habit")  # of the controls, those that are one schedule for all samples
_LOWER = 0.01  # of precision: so much is lower however wide the interval


class Estimate(NamedTuple):
    """A mean and half of its 95 % interval."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class Entry:
    """A contender at a budget with a solver: the results of all its seeds.

    Args:
        name: Of the contender; controls are "policy, control".
        solver: Reference of the solver.
        nfe: Budget.
        results: One per seed.
    """

    name: str
    solver: str
    nfe: float
    results: tuple[Result, ...]

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


def interval(values: Sequence[Sequence[float]]) -> Estimate:
    """Mean of (seeds × blocks) values and the wider of the two half widths."""
    over_blocks = block_mean(_mean_of_seeds(values))
    return Estimate(over_blocks.mean, max(over_blocks.half_width, _over_seeds(values)))


def _mean_of_seeds(values: Sequence[Sequence[float]]) -> list[float]:
    """Per block."""
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def _over_seeds(values: Sequence[Sequence[float]]) -> float:
    """Half width of the mean over seeds; 0 where there is one."""
    return block_mean([sum(row) / len(row) for row in values]).half_width if len(values) > 1 else 0.0


def difference(one: Entry, other: Entry, judge: str, metric: str) -> Estimate:
    """``one`` minus ``other``, paired by block; training seeds are independent of each other's."""
    ours, theirs = one.values(judge, metric), other.values(judge, metric)
    over_blocks = paired_difference(_mean_of_seeds(ours), _mean_of_seeds(theirs))
    over_seeds = math.hypot(_over_seeds(ours), _over_seeds(theirs))
    return Estimate(over_blocks.mean, max(over_blocks.half_width, over_seeds))


def lost(policy: Entry, control: Entry, judge: str, metric: str) -> Estimate:
    """A policy minus what is left of it when a control takes something away: by block and by seed."""
    ours, theirs = (
        dict(zip((r["seed"] for r in e.results), e.values(judge, metric), strict=True))
        for e in (policy, control)
    )
    rows = [(row, theirs[seed]) for seed, row in ours.items() if seed in theirs]
    return interval([[a - b for a, b in zip(*pair, strict=True)] for pair in rows])


class Comparison(NamedTuple):
    """A policy against one rival; differences are the policy's minus the rival's.

    Args:
        rival: Who.
        distance: Of the Fréchet distance (negative: the policy is better).
        kid: Of KID.
        precision: Of precision.
        is_nearest: Whether no other rival is nearer than this one outside the interval.
    """

    rival: Entry
    distance: Estimate
    kid: Estimate
    precision: Estimate
    is_nearest: bool

    @property
    def fault(self) -> str:
        """Why the policy does not beat the rival, or nothing."""
        name = self.rival.name
        if self.distance.mean + self.distance.half_width >= 0:
            return f"it is not nearer than {name} outside the interval"
        if self.kid.mean >= 0:
            return f"KID disagrees about {name}"
        lower = self.precision.mean + self.precision.half_width < 0 or self.precision.mean < -_LOWER
        if self.is_nearest and lower:
            told = f"{self.precision.mean:+.3f} ± {self.precision.half_width:.3f}"
            return f"its precision is lower than that of {name}: {told}"
        return ""


class Claim(NamedTuple):
    """A policy against its rivals at a budget.

    It stands where the distance is smaller than every rival's outside the interval, KID agrees, and precision
    is not lower than that of any of the nearest: by 0.01 at most, and not outside its interval.

    Args:
        policy: Who claims.
        against: Its rivals, the nearest one first.
    """

    policy: Entry
    against: tuple[Comparison, ...]

    @property
    def nearest(self) -> Comparison:
        """The rival of least distance."""
        return self.against[0]

    @property
    def fault(self) -> str:
        """Why it does not stand, or nothing."""
        return next((one.fault for one in self.against if one.fault), "")

    @property
    def holds(self) -> bool:
        """Whether it stands."""
        return not self.fault


@dataclass(frozen=True)
class Study:
    """All results of a study.

    Args:
        config: Its settings.
        judges: Names of the judges, the deciding one first.
        distances: Judge to the name of its Fréchet distance.
        entries: Every contender that could spend its budget.
        unreachable: "who at what with which solver: why", of the others.
        pictures: Who at what with which solver, to a picture of what it gave to whom.
        left: Jobs that are not done yet.
    """

    config: StudyConfig
    judges: Sequence[str]
    distances: Mapping[str, str]
    entries: Sequence[Entry]
    unreachable: Sequence[str]
    pictures: Mapping[str, Path] = field(default_factory=dict)
    left: Sequence[str] = ()

    @property
    def distance(self) -> str:
        """Name of the deciding distance."""
        return self.distances[self.judges[0]]

    def at(self, solver: str, nfe: float) -> list[Entry]:
        """Who spends this budget with this solver."""
        return [entry for entry in self.entries if (entry.solver, entry.nfe) == (solver, nfe)]

    def full(self, solver: str) -> Entry | None:
        """The full trajectory."""
        return next((e for e in self.entries if e.name == FULL and e.solver == solver), None)

    def looks(self, name: str) -> bool:
        """Whether a contender is a learned policy that may look at the sample."""
        return name in self.config.policies and name not in self.config.blind

    def parts(self, name: str) -> tuple[str, str]:
        """Of a control's name the policy's and its own; of another one's that, and nothing."""
        owners = [policy for policy in self.config.policies if name.startswith(f"{policy}, ")]
        if name in self.config.policies or not owners:
            return name, ""
        owner = max(owners, key=len)
        return owner, name.removeprefix(f"{owner}, ")

    def is_fixed(self, entry: Entry) -> bool:
        """Whether it is a rival in claim A: whoever gives all images the same schedule, and looks at none.

        A mixture of a single schedule is one, too; any other, and coin flips, are rivals in claim B.
        """
        owner, control = self.parts(entry.name)
        if control:
            return owner in self.config.policies and control in _FIXED
        if entry.name in self.config.policies and entry.name not in self.config.blind:
            return False
        return entry.name != FULL and entry.is_one_schedule

    def is_blind(self, entry: Entry, policy: Entry) -> bool:
        """Whether it is a rival of ``policy`` in claim B: whoever does not look, nor its schedules dealt."""
        if self.parts(entry.name)[1]:
            return self.is_fixed(entry) or entry.name == f"{policy.name}, dealt"
        return entry.name != FULL and not self.looks(entry.name)

    def minus(self, policy: Entry, other: Entry, judge: str, metric: str) -> Estimate:
        """What a policy has more of than another contender, or one of its own controls."""
        owner, control = self.parts(other.name)
        return (lost if control and owner == policy.name else difference)(policy, other, judge, metric)

    def claim(self, policy: Entry, rivals: Iterable[Entry]) -> Claim | None:
        """The policy against ``rivals``."""
        judge = self.judges[0]
        ranked = sorted(rivals, key=lambda e: e.estimate(judge, self.distance).mean)
        against = []
        for rival in ranked:
            gap = difference(rival, ranked[0], judge, self.distance)
            distance, kid, precision = (
                self.minus(policy, rival, judge, metric) for metric in (self.distance, "kid", "precision")
            )
            is_nearest = gap.mean - gap.half_width <= 0
            against.append(Comparison(rival, distance, kid, precision, is_nearest))
        return Claim(policy, tuple(against)) if against else None

    def claims(self) -> tuple[list[Claim], list[Claim]]:
        """Claim A, against all that is fixed, and claim B, against all that do not look."""
        beats_fixed, looking_pays = [], []
        for entry in self.entries:
            if not self.looks(entry.name):
                continue
            here = self.at(entry.solver, entry.nfe)
            a = self.claim(entry, [e for e in here if self.is_fixed(e)])
            b = self.claim(entry, [e for e in here if self.is_blind(e, entry)])
            beats_fixed += [] if a is None else [a]
            looking_pays += [] if b is None else [b]
        return beats_fixed, looking_pays

    def ends_are_sound(self, solver: str) -> bool:
        """Whether no fixed schedule of ten evaluations or fewer beats the full trajectory."""
        full = self.full(solver)
        if full is None:
            return True
        judge = self.judges[0]
        few = [e for e in self.entries if e.solver == solver and self.is_fixed(e) and e.nfe <= 10]
        gaps = (difference(e, full, judge, self.distance) for e in few)
        return all(gap.mean + gap.half_width >= 0 for gap in gaps)


def gather_entries(results: Iterable[Result]) -> tuple[list[Entry], list[str]]:
    """Group results by contender, solver and budget; and tell what could not be spent."""
    results = list(results)
    called = _short_names(results)
    groups: dict[tuple[str, str, float], list[Result]] = {}
    unreachable = []
    for result in results:
        name = called[result["name"]]
        if result["control"]:
            name += f", {label(result['control'])}"
        if "unreachable" in result:
            if result["control"] not in (None, "mode"):
                continue  # what is left of a policy is out of reach where the policy is
            unreachable.append(f"{name} at {result['nfe']:g}, {result['solver']}: {result['unreachable']}")
        else:
            groups.setdefault((name, result["solver"], result["nfe"]), []).append(result)
    return [Entry(*key, tuple(found)) for key, found in groups.items()], unreachable


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
