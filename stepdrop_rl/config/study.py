"""The study of policies against everything else, with its controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepdrop_rl.config.common import (
    CommonConfig,
    Precision,
    RewardName,
    require,
    require_blocks,
    require_minutes,
)

_PLAIN = ("mode", "mean_schedule", "habit", "dealt", "coins", "shuffled")
_SHOWN = ("noise", "change", "clipping", "features")  # agents.controls.SHOWN
CONTROLS = (*_PLAIN, *(f"shuffled_{group}" for group in _SHOWN))
_ENTRY = ("algo", "seeds", "nfe", "controls", "plans", "start_from", "train", "again")  # of a policy
_OURS = ("algo", "data.name", "env.solver", "output", "seed", "target_nfe")  # of a training's options


def begins_with(policy: Mapping[str, Any], nfe: float | None = None) -> list[str]:
    """The searches with whose results a policy of a study begins at a budget, or at any of them."""
    plans = policy.get("plans", [])
    if isinstance(plans, Mapping):
        if nfe is None:
            return [name for one in plans.values() for name in begins_with({"plans": one})]
        plans = {float(budget): one for budget, one in plans.items()}.get(nfe, [])
    return [plans] if isinstance(plans, str) else list(plans)


def _require_options(called: str, told: Any) -> None:
    """Of train_policy, none of which the study sets itself."""
    require(isinstance(told, Mapping), f"{called} must hold options of train_policy")
    ours = sorted(set(told) & set(_OURS))
    require(not ours, f"{called} may not hold {', '.join(ours)}: the study sets it")
    hyperparameters = told.get("hyperparameters", {})
    require(isinstance(hyperparameters, Mapping), f"{called}.hyperparameters must hold names and values")


def _are_plans(told: Any) -> bool:
    """Whether it is a name, a list of names, or budgets to such."""
    if isinstance(told, Mapping):
        budgets = (str(budget).replace(".", "", 1).isdigit() for budget in told)
        return all(budgets) and all(isinstance(one, (str, list)) for one in told.values())
    return isinstance(told, (str, list))


@dataclass(frozen=True, kw_only=True)
class StudyConfig(CommonConfig):
    """Train, search and judge: learned policies against every rival, at the same cost, with their controls.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        solvers: With each of which all of it is done.
        nfe: Mean evaluations per image.
        policies: Name to settings; configs/study_digits.yaml has most of them. algo: the algorithm (else the
            name is one). seeds: how many. nfe, controls: if not those of all. train: options of train_policy.
            plans: the search, or several, whose results 'fork' begins with, or budget to these. start_from:
            the policy before it whose run of the same seed it starts from. again: options for the seeds
            after the first, which then start from its run: 'fork' from its looks.
        searches: Methods of search, at whole budgets; energy:effort=8 searches for so much longer,
            energy:order=2 with jumps of a lower order than the solver's, energy:teacher=0.03 with its
            teacher's results at that weight in place of 0.125.
        baselines: Agents of a budget; a * after the name: with the last time that suits it best. A file or
            a list of times is judged at the budget that is its count, with its solver.
        controls: What is taken away from each policy (its first seed; of all its seeds, dealt) in turn:
            mode, mean_schedule, habit (of one that plans: its plan for a sample that shows nothing unusual),
            dealt, coins, shuffled;
            shuffled_noise, shuffled_change, shuffled_clipping and shuffled_features tell what it looks at.
            Blind ones have nothing to shuffle.
        blind: Policies that never look at the sample: the rivals of those that do.
        extractor: What searches and rewards look at images through: as env.extractor of train_policy.
        judges: Extractors that no reward used, the first one decides (default: the data set's, and our own
            judge, or where that is the data set's, validation).
        only: Contenders to judge, and what they need, of all those above (default: all of them).
        made: Folder of a study of the same policies and searches: what they found there is judged, nothing is
            trained or searched; a last time with a * is tuned anew.
        num_samples: Images of each contender at each budget.
        blocks: Disjoint blocks of noise.
        teacher_steps: Evaluations of the full trajectory.
        batch_size: Images held at once.
        precision: Of the network; auto is bfloat16 on CUDA, and for large networks on CPUs that have it.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
        output: Folder of all that is made (default runs/DATA/study).
        report: Folder of report.html, report.md and figures (default: the output folder).
        workers: Processes that share the threads and the jobs; what they print is in OUTPUT/workers.log.
        max_minutes: Begin no new job after this long; the same command goes on.
        plan: Say what is to be done and what it will cost, and end.
    """

    model: str | None = None
    solvers: list[str] = field(default_factory=lambda: ["multistep"])
    nfe: list[float] = field(default_factory=lambda: [4.0, 5.0, 6.0, 8.0])
    policies: dict[str, dict[str, Any]] = field(default_factory=lambda: {"ppo": {"algo": "ppo", "seeds": 1}})
    searches: list[str] = field(
        default_factory=lambda: ["xue", "gits", "oss", "ld3", "energy", "blackbox", "mixture"]
    )
    baselines: list[str] = field(
        default_factory=lambda: ["uniform", "uniform*", "quadratic", "quadratic*", "log_snr", "log_snr*"]
    )
    controls: list[str] = field(default_factory=lambda: list(_PLAIN))
    blind: list[str] = field(default_factory=lambda: ["mixture"])
    extractor: RewardName = "reward"
    judges: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    made: str | None = None
    num_samples: int = 10_240
    blocks: int = 5
    teacher_steps: int = 50
    batch_size: int = 256
    precision: Precision = "auto"
    compile: bool = False
    output: str | None = None
    report: str | None = None
    workers: int = 1
    max_minutes: float | None = None
    plan: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.solvers) and bool(self.nfe), "study needs solvers and budgets")
        require(
            all(1 <= nfe < math.inf for nfe in self.nfe), f"nfe needs budgets of at least 1, not {self.nfe}"
        )
        require(self.workers >= 1, f"workers must be at least 1, not {self.workers}")
        require_blocks(self.num_samples, self.blocks)
        for name, entry in self.policies.items():
            *most, last = _ENTRY
            known = f"{', '.join(most)} and {last}"
            unknown = sorted(set(entry) - set(_ENTRY))
            require(not unknown, f"policies.{name} knows {known}, not {unknown}")
            controls = entry.get("controls", [])
            require(
                isinstance(controls, list) and all(isinstance(one, str) for one in controls),
                f"policies.{name}: controls must be a list of names",
            )
            require(isinstance(entry.get("algo", name), str), f"policies.{name}: algo must be a name")
            for told in ("train", "again"):
                _require_options(f"policies.{name}: {told}", entry.get(told, {}))
            require(_are_plans(entry.get("plans", [])), f"policies.{name}: plans must be names of searches")
            for plans in begins_with(entry):
                require(
                    plans in self.searches,
                    f"policies.{name}: plans must be of the searches {self.searches}, not {plans}",
                )
            budgets = entry.get("nfe", self.nfe)
            require(
                isinstance(budgets, list) and bool(budgets) and all(nfe in self.nfe for nfe in budgets),
                f"policies.{name}: nfe must be some of the study's budgets {self.nfe}, not {budgets}",
            )
            seeds = entry.get("seeds", 1)
            require(type(seeds) is int and seeds > 0, f"policies.{name}.seeds must be a positive number")
            self._require_first(name, entry)
        for control in (*self.controls, *(c for name in self.policies for c in self.controls_of(name))):
            require(control in CONTROLS, f"unknown control '{control}'; known are {', '.join(CONTROLS)}")
        require_minutes(self.max_minutes)

    def seeds_of(self, policy: str) -> int:
        """How many training seeds a policy has."""
        return int(self.policies[policy].get("seeds", 1))

    def controls_of(self, policy: str) -> list[str]:
        """What is taken away from a policy in turn: blind ones have nothing to shuffle."""
        asked = self.policies[policy].get("controls", self.controls)
        return [c for c in asked if policy not in self.blind or not c.startswith("shuffled")]

    def _require_first(self, name: str, entry: Mapping[str, Any]) -> None:
        """The policy that one starts from comes before it, with as many seeds as start from it."""
        first = entry.get("start_from")
        if first is None:
            return
        before = list(self.policies)[: list(self.policies).index(name)]
        known = ", ".join(before) or "none"
        require(first in before, f"policies.{name}: start_from must be one of those before it: {known}")
        require(
            "again" in entry or self.seeds_of(first) >= self.seeds_of(name),
            f"policies.{name} has more seeds than {first}, which it starts from",
        )
