"""Finding, loading and saving learned policies, and making any agent that a command names."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import torch

from agents import ALGORITHMS, BASELINES
from agents.base import Agent, Budget
from agents.fixed import FixedSchedule, numbers
from agents.planned import Mixture, Oracle, read_plan
from agents.policy import LearnedPolicy, build_policy, describe
from agents.stochastic import SET, given_chance
from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.unet import PRETRAINED, Model
from stepdrop_rl.runs import run_folder
from stepdrop_rl.weights import load_weights, save_weights

POLICY = "policy"


def save_policy(folder: Path, policy: LearnedPolicy) -> None:
    """Write a policy folder, atomically."""
    save_weights(folder, POLICY, policy.tensors(), describe(policy))


def load_policy(folder: Path) -> LearnedPolicy:
    """Read a policy folder; :class:`UserError` where it is damaged."""
    tensors, raw = load_weights(folder, POLICY)
    return build_policy(raw, tensors, folder / f"{POLICY}.json")


def find_policy(algo: str, dataset: str) -> Path:
    """The folder of the policy that ``algo`` last learned here, else of the one that ships."""
    trained = run_folder(dataset, algo)
    if (trained / f"{POLICY}.json").is_file():
        return trained
    shipped = PRETRAINED / dataset / "policies" / algo
    if (shipped / f"{POLICY}.json").is_file():
        return shipped
    raise UserError(
        f"no {algo} policy for {dataset} yet: run python -m stepdrop_rl.train_policy --algo {algo}"
        f" --data.name {dataset}"
    )


def check_fit(policy: LearnedPolicy, model: Model, solver: str | None) -> None:
    """Raise :class:`UserError` unless the policy was trained for this model and solver."""
    if policy.info.model_hash != model.hash:
        raise UserError(
            f"this {policy.name} policy was trained for another model ({policy.info.model_hash}, not "
            f"{model.hash}): choose its --model, or train it again"
        )
    ends = (policy.info.times[0], policy.info.times[-1])
    later = policy.may_go_on and ends[1] < model.info.t_end
    if ends[0] != model.info.t_start or (ends[1] != model.info.t_end and not later):
        raise UserError(
            f"this {policy.name} policy was trained from t = {ends[0]:g} to {ends[1]:g}, the model's ends "
            f"are now {model.info.t_start:g} and {model.info.t_end:g}: train it again"
        )
    if policy.projection is not None:
        widths = model.denoiser.feature_widths
        total = sum(widths.get(name, 0) for name in policy.projection.features)
        if total != len(policy.projection.mean):
            raise UserError(
                f"this {policy.name} policy observes {len(policy.projection.mean)} features "
                f"({' + '.join(policy.projection.features)}), the model has {total}: train it again"
            )
    if solver is not None and solver != policy.info.solver:
        raise UserError(
            f"this {policy.name} policy was trained with solver '{policy.info.solver}', not '{solver}'"
        )


Given = FixedSchedule | Mixture  # times of its own: no budget moves what it spends


def given(name: str) -> Given | None:
    """What ``name`` says itself, a file of times or a list of them; None where it is anything else.

    Raises:
        UserError: The file or the list is damaged, or holds what cannot be run on any noise.
    """
    if name in BASELINES or name in ALGORITHMS:
        return None
    if name.lstrip().startswith("["):
        return _listed(name)
    path = Path(name)
    if not path.is_file():
        return None
    plan = read_plan(path)
    if isinstance(plan, Oracle):
        raise UserError(
            f"{path} holds a schedule for each of {len(plan.schedules):,} training noises, which means "
            "nothing on others: clone it with train_policy --algo clone (the bound is what search printed)"
        )
    return plan


def _listed(text: str) -> FixedSchedule:
    """A list of times, run unrounded."""
    try:
        times = numbers(json.loads(text))
    except (ValueError, RecursionError):
        raise UserError(f"'{text:.60}' is not a list of times, as [967.1, 500, 24] is") from None
    return FixedSchedule(f"{len(times)} given times", torch.tensor(times, dtype=torch.float64))


def check_name(name: str) -> None:
    """Raise :class:`UserError` where nothing is called ``name``; before a model is loaded."""
    known = name in BASELINES or name in ALGORITHMS or name.startswith(SET)
    if not known and given(name) is None and not Path(name).is_dir():
        raise unknown_name("policy", name, [*BASELINES, *ALGORITHMS])


def check_range(plan: Given, name: str, schedule: NoiseSchedule) -> None:
    """Raise :class:`UserError` unless its times, and those that the network is told, are the model's."""
    assert plan.times is not None
    try:
        schedule.check_times(plan.times)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    last = schedule.num_train_timesteps - 1
    told = plan.network_times if isinstance(plan, FixedSchedule) else None
    if told is not None and not (0 <= float(told.min()) <= float(told.max()) <= last):
        raise UserError(f"{name}: network_times must lie in [0, {last}]")


@cache
def _warn(line: str) -> None:
    """On stderr, once."""
    print(line, file=sys.stderr)


def make_agent(name: str, budget: Budget, *, model: Model, solver: str | None) -> Agent:
    """Return the agent that a command names.

    A baseline, an algorithm, a policy's folder, a file of times or a list of them, or given chances.
    """
    if name in BASELINES:
        agent: Agent = BASELINES.load(name)(budget)
        return agent
    if name.startswith(SET):
        return given_chance(name, budget.num_decisions)
    plan = given(name)
    if plan is not None:
        check_range(plan, name, model.denoiser.schedule)
        if solver is not None and plan.solver not in (None, solver):
            raise UserError(f"{name} was made for solver '{plan.solver}', not '{solver}'")
        if plan.model_hash not in (None, model.hash):  # tried on another on purpose, perhaps
            _warn(f"warning: {name} was made for another model ({plan.model_hash}, not {model.hash})")
        return plan
    if name in ALGORITHMS:
        folder = find_policy(name, model.info.dataset)
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        raise unknown_name("policy", name, [*BASELINES, *ALGORITHMS])
    policy = load_policy(folder)
    check_fit(policy, model, solver)
    if name in ALGORITHMS and folder.is_relative_to(PRETRAINED):
        print(f"no {name} policy trained here yet: using the one that ships", file=sys.stderr)
    return policy
