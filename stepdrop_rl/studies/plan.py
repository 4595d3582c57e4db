"""What a study is to do: jobs, each with the file that shows that it is done, and what each costs.

Costs are network evaluations of single images. Those of training and of searches are estimates, those of
judging are exact but for policies, which spend their budget at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agents.fixed import whole
from stepdrop_rl.cli import parse
from stepdrop_rl.config import StudyConfig, TrainPolicyConfig
from stepdrop_rl.config.study import begins_with
from stepdrop_rl.policies import Given, given

Kind = Literal["train", "search", "judge"]
FULL = "full"
RIVAL_CONTROLS = ("dealt",)  # of the controls, those that every training seed's policy has to beat in claim B

_LOOK_PRICES, _LOOK_NFE = 7, 6.0  # of the validation judge
_GRADIENT = 4  # calls' worth: the call, again for its activations, and a backward pass of two
_LD3_EPOCHS = 20  # after which its patience ends most searches
_PRICE_IMAGES, _PRICE_TRIES = 1024, 5  # to find the price of a budget


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Args:
        kind: train, search or judge.
        name: Of the policy, method or agent.
        solver: Reference of the solver.
        nfe: Budget; 0 for training, which serves all of them.
        seed: Of the policy's training.
        control: What is taken away from the policy, or None.
    """

    kind: Kind
    name: str
    solver: str
    nfe: float = 0.0
    seed: int = 0
    control: str | None = None

    @property
    def label(self) -> str:
        """For people."""
        of = "" if self.kind != "judge" or self.control is None else f", {self.control.replace('_', ' ')}"
        at = f" at {self.nfe:g}" if self.nfe else ""
        seed = f", seed {self.seed}" if self.kind == "train" or self.seed else ""
        return f"{self.kind} {self.name}{of}{at}, {self.solver}{seed}"

    def path(self, root: Path) -> Path:
        """The file that shows that it is done."""
        which = slug(f"{self.name}-{self.solver}")
        if self.kind == "train":
            return root / "policies" / f"{which}-{self.seed}" / "state.json"
        if self.kind == "search":
            return root / "schedules" / f"{which}-{self.nfe:g}.json"
        control = f"-{self.control}" if self.control else ""
        return root / "results" / f"{which}-{self.nfe:g}-{self.seed}{control}.json"


def listed(some: Iterable[Job]) -> list[str]:
    """Jobs for people: each contender with its budgets, and its seeds where it has several."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in some:
        name = job.name if job.control is None else f"{job.name}, {job.control.replace('_', ' ')}"
        groups.setdefault((name, job.solver), []).append(job)
    lines = []
    for (name, solver), mine in groups.items():
        budgets = ", ".join(f"{nfe:g}" for nfe in sorted({job.nfe for job in mine}))
        seeds = sorted({job.seed for job in mine})
        with_seeds = f", seeds {', '.join(map(str, seeds))}" if seeds != [0] else ""
        lines.append(f"{name} at {budgets}, {solver}{with_seeds}")
    return lines


def slug(text: str) -> str:
    """``text`` as a part of a file's name."""
    text = text.replace("*", "-tuned").replace(",", "-and-")  # 9,5 is not 9.5
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def budgets_of(config: StudyConfig, policy: str) -> list[float]:
    """The budgets at which a policy is judged."""
    return [float(nfe) for nfe in config.policies[policy].get("nfe", config.nfe)]


def training_of(config: StudyConfig, job: Job, root: Path) -> TrainPolicyConfig:
    """The settings of a training job: the entry's own options above those of all of them."""
    entry = config.policies[job.name]
    needed = needs(config, job)
    plans = [str(need.path(root)) for need in needed if need.kind == "search"]
    options: dict[str, Any] = {
        "data.name": config.data.name,
        "algo": entry.get("algo", job.name),
        "env.solver": job.solver,
        "env.extractor": config.extractor,
        "seed": job.seed,
        "device": config.device,
        "tracking": config.tracking,
        "precision": config.precision,
        "compile": config.compile,
        "output": str(job.path(root).parent),
        "target_nfe": [float(nfe) for nfe in budgets_of(config, job.name)],
        **entry.get("train", {}),
        **(entry.get("again", {}) if job.seed else {}),
    }
    if plans:
        options["hyperparameters"] = {**options.get("hyperparameters", {}), "plans": plans}
    for first in needed:
        if first.kind == "train":
            options["start_from"] = str(first.path(root).parent)
    if config.data.root is not None:
        options["data.root"] = config.data.root
    if config.model is not None:
        options["model"] = config.model
    return parse(TrainPolicyConfig, "train_policy", [f"--{key}={value}" for key, value in options.items()])


def baselines_of(config: StudyConfig) -> dict[str, Given | None]:
    """The baselines, and what those that are files or lists of times give, of which no budget is asked.

    Lists lose their spaces: a name with a comma and a space is that of a control.
    """
    names = [re.sub(r"\s", "", name) if name.startswith("[") else name for name in config.baselines]
    return {name: given(name) for name in names}


def jobs(config: StudyConfig) -> list[Job]:
    """All of them, in an order in which each finds what it needs, or those of the contenders asked for."""
    every = list(_matrix(config))
    if not config.only:
        return every
    asked = {job for job in every if job.kind == "judge" and job.name in config.only}
    wanted = _with_needs(config, asked)
    return [job for job in every if job in wanted]


def _matrix(config: StudyConfig) -> Iterator[Job]:
    """Every contender at every budget."""
    counts = [nfe for nfe in config.nfe if nfe == int(nfe)]
    baselines = baselines_of(config)
    for solver in config.solvers:
        trainings = [
            Job("train", name, solver, seed=seed)
            for name in config.policies
            for seed in range(config.seeds_of(name))
        ]
        yield from (job for job in trainings if not needs(config, job))
        for method in config.searches:
            for nfe in counts:
                yield Job("search", method, solver, nfe)
        yield from (job for job in trainings if needs(config, job))
    for solver in config.solvers:
        yield Job("judge", FULL, solver, float(config.teacher_steps))
        for nfe in config.nfe:
            for name in config.policies:
                if nfe not in budgets_of(config, name):
                    continue
                for seed in range(config.seeds_of(name)):
                    yield Job("judge", name, solver, nfe, seed)
                for control in config.controls_of(name):
                    for seed in range(config.seeds_of(name) if control in RIVAL_CONTROLS else 1):
                        yield Job("judge", name, solver, nfe, seed, control)
            for name, plan in baselines.items():
                if plan is None or (whole(plan.nfe) == nfe and plan.solver in (None, solver)):
                    yield Job("judge", name, solver, nfe)
            if nfe in counts:
                for method in config.searches:
                    yield Job("judge", method, solver, nfe)


def needs(config: StudyConfig, job: Job) -> list[Job]:
    """The jobs that must be done before this one."""
    if job.kind == "search":
        return []
    if job.kind == "train":
        entry = config.policies[job.name]
        budgets = [nfe for nfe in budgets_of(config, job.name) if nfe == int(nfe)]
        found = [
            Job("search", method, job.solver, nfe) for nfe in budgets for method in begins_with(entry, nfe)
        ]
        if job.seed and "again" in entry:
            return [*found, replace(job, seed=0)]
        first = entry.get("start_from")
        return found if first is None else [*found, replace(job, name=first)]
    if job.name not in config.policies:
        return [replace(job, kind="search")] if job.name in config.searches else []
    if job.control not in (None, "mode"):
        return [replace(job, control=None)]
    return [replace(job, kind="train", nfe=0.0, control=None)]


def _with_needs(config: StudyConfig, some: set[Job]) -> set[Job]:
    """Jobs, those that they need, those that these need, and so on."""
    found, further = set(some), some
    while further := {need for job in further for need in needs(config, job)} - found:
        found |= further
    return found


def _search_cost(reference: str, nfe: float) -> float:
    """Of one search: what it draws once, and trajectories of ``nfe`` evaluations; xue draws nothing."""
    from agents.search import blackbox, energy, gits, ld3, mixture, oss, read_search

    method, effort, *_ = read_search(reference)
    once = {
        "gits": gits.NUM_IMAGES * gits.GRID,
        "oss": oss.NUM_IMAGES * oss.GRID**2 // 2,
        "ld3": (ld3.NUM_TRAINING + ld3.NUM_HELD_BACK) * ld3.TEACHER_POINTS,
        "energy": energy.NUM_TRAINING * energy.TEACHER_POINTS,
    }
    passes = {
        "ld3": min(_LD3_EPOCHS, ld3.EPOCHS) * (3 * ld3.NUM_TRAINING + ld3.NUM_HELD_BACK),
        "energy": _GRADIENT * energy.STEPS * energy.BATCH,
        "blackbox": blackbox.CANDIDATES * blackbox.NUM_IMAGES,
        "mixture": 3 * mixture.CANDIDATES * blackbox.NUM_IMAGES,
    }
    found = effort * (once.get(method, 0) + passes.get(method, 0) * nfe)
    if method == "mixture":  # what may join it is drawn again, however many were tried
        found += 3 * mixture.BEST * mixture.NUM_IMAGES * nfe
    return found


def cost(config: StudyConfig, job: Job, root: Path) -> float:
    """Network evaluations of single images."""
    if job.kind == "judge":
        found = config.num_samples * job.nfe
        priced = job.name in config.policies and job.control in (None, "mode")
        return found + (_PRICE_IMAGES * _PRICE_TRIES * job.nfe if priced else 0)
    if job.kind == "search":
        return _search_cost(job.name, job.nfe)
    training = training_of(config, job, root)
    episodes = training.decisions / max(training.env.num_decisions - 1, 1)
    looks = training.decisions / training.judge_every + 1
    return episodes * _episode_cost(training) + looks * _LOOK_PRICES * training.judge_samples * _LOOK_NFE


def effort(config: StudyConfig, name: str, solver: str, nfe: float) -> float:
    """What finding a policy or a schedule for a budget took, all that it needs included, as in :func:`cost`.

    Of a policy's training, which serves all its budgets alike, a budget's share.
    """
    if name not in config.policies:
        return cost(config, Job("search", name, solver, nfe), Path())
    return sum(
        cost(config, job, Path()) / (len(budgets_of(config, job.name)) if job.kind == "train" else 1)
        for job in _with_needs(config, {Job("train", name, solver)})
        if job.nfe in (0, nfe)
    )


def _episode_cost(training: TrainPolicyConfig) -> float:
    """Of one trajectory that is learned from."""
    if training.algo == "relaxed":  # gates call at every point
        return _GRADIENT * training.env.num_decisions
    if training.algo == "pathwise":
        return _GRADIENT * _LOOK_NFE
    if training.algo == "fork" and training.start_from is not None:
        return 0.0  # all of it was drawn before
    if training.algo == "fork":  # branches are drawn with gradients while times are learned, then all of them
        from agents.forking import ForkLearner

        h = {**ForkLearner.defaults, **training.hyperparameters}
        plan = (h["min_nfe"] + h["max_nfe"]) / 2
        if h["plans"]:  # given: branches part at every look, and all cost the same
            options = 1 + len(h["stretches"]) + len(h["orders"])
            looks, left = int(h["looks"]), int(h["left"])
            branches = _LOOK_NFE - left + sum(options ** min(k, looks) for k in range(1, left + 1))
            return float(h["looks_share"]) * branches
        sides, share = 2 * h["width"], float(h["times_share"])
        times = _GRADIENT * (plan + sides * h["left"])
        looks = plan + (sides + len(h["stretches"])) * h["left"]
        return float(share * times + (1 - share) * float(h["looks_share"]) * looks)
    return _LOOK_NFE
