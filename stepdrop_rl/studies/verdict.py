"""From contenders to claims: which of them a policy beats, and by what rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agents import LOOKING
from stepdrop_rl.config import StudyConfig
from stepdrop_rl.studies.entries import Entry, difference, difference_by_seed
from stepdrop_rl.studies.plan import FULL, RIVAL_CONTROLS, Job
from stepdrop_rl.studies.spread import Estimate

_FIXED = ("mean_schedule", "habit")  # of the controls, those that are one schedule for all samples
_LOWER = 0.01  # of precision: so much is lower however wide the interval


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
        left: What it rests on and is not judged yet: rivals, and the policy's further seeds.
        named: Whether the study judges some of its contenders alone.
    """

    policy: Entry
    against: tuple[Comparison, ...]
    left: tuple[Job, ...] = ()
    named: bool = False

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
        """Whether it stands, against those that were judged."""
        return not self.fault

    @property
    def word(self) -> str:
        """What to call it."""
        if not self.holds:
            return "does not hold"
        return "holds so far" if self.left else "holds against those named" if self.named else "holds"


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
    left: Sequence[Job] = ()

    @property
    def distance(self) -> str:
        """Name of the deciding distance."""
        return self.distances[self.judges[0]]

    def at(self, solver: str, nfe: float) -> list[Entry]:
        """Who spends this budget with this solver."""
        return [entry for entry in self.entries if (entry.solver, entry.nfe) == (solver, nfe)]

    def full(self, solver: str) -> Entry | None:
        """The full trajectory."""
        return next((e for e in self.entries if e.contender == FULL and e.solver == solver), None)

    def looks(self, entry: Entry | Job) -> bool:
        """Whether it is a learned policy that may look at the sample, nothing taken away."""
        name = entry.contender if isinstance(entry, Entry) else entry.name
        return entry.control is None and name in self.config.policies and name not in self.config.blind

    def is_fixed(self, entry: Entry) -> bool:
        """Whether it is a rival in claim A: whoever gives all images the same schedule, and looks at none.

        A mixture of a single schedule is one, too; any other, and coin flips, are rivals in claim B.
        """
        if entry.control is not None:
            return entry.control in _FIXED
        return entry.contender != FULL and not self.looks(entry) and entry.is_one_schedule

    def is_blind(self, entry: Entry, policy: Entry) -> bool:
        """Whether it is a rival of ``policy`` in claim B: whoever does not look, nor its schedules dealt."""
        if entry.control is not None:
            own = entry.contender == policy.contender and entry.control in RIVAL_CONTROLS
            return own or self.is_fixed(entry)
        return entry.contender not in (FULL, *LOOKING) and not self.looks(entry)

    def minus(self, policy: Entry, other: Entry, judge: str, metric: str) -> Estimate:
        """What a policy has more of than another contender, or one of its own controls.

        Of a control that is a schedule there is one, as of any fixed rival: all seeds are compared with it.
        """
        own = other.contender == policy.contender and other.control not in (None, *_FIXED)
        return (difference_by_seed if own else difference)(policy, other, judge, metric)

    def left_of(self, policy: Entry, controls: Sequence[str]) -> tuple[Job, ...]:
        """What is not judged yet of the policy, of these controls of it, and of all that do not look."""
        here = (job for job in self.left if (job.solver, job.nfe) == (policy.solver, policy.nfe))
        return tuple(
            job
            for job in here
            if (job.name == policy.contender and job.control in (None, *controls))
            or (job.control is None and job.name not in (FULL, *LOOKING) and not self.looks(job))
        )

    def claim(
        self,
        policy: Entry,
        rivals: Iterable[Entry],
        within: Claim | None = None,
        left: tuple[Job, ...] = (),
    ) -> Claim | None:
        """The policy against ``rivals``; the nearest of a claim that is part of this one remain so."""
        judge = self.judges[0]
        asked = [one.rival for one in within.against if one.is_nearest] if within else []
        ranked = sorted(rivals, key=lambda e: e.estimate(judge, self.distance).mean)
        against = []
        for rival in ranked:
            gap = difference(rival, ranked[0], judge, self.distance)
            distance, kid, precision = (
                self.minus(policy, rival, judge, metric) for metric in (self.distance, "kid", "precision")
            )
            is_nearest = gap.mean - gap.half_width <= 0 or rival in asked
            against.append(Comparison(rival, distance, kid, precision, is_nearest))
        return Claim(policy, tuple(against), left, bool(self.config.only)) if against else None

    def claims(self) -> tuple[list[Claim], list[Claim]]:
        """Claim A, against all that is fixed, and claim B, against all that do not look."""
        beats_fixed, looking_pays = [], []
        for entry in self.entries:
            if not self.looks(entry):
                continue
            here = self.at(entry.solver, entry.nfe)
            a = self.claim(entry, [e for e in here if self.is_fixed(e)], left=self.left_of(entry, _FIXED))
            b = self.claim(
                entry,
                [e for e in here if self.is_blind(e, entry)],
                within=a,
                left=self.left_of(entry, (*_FIXED, *RIVAL_CONTROLS)),
            )
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
