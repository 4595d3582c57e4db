"""Finding, loading and saving learned policies, and making any agent that a command names."""

from __future__ import annotations

import sys
from pathlib import Path

from agents import ALGORITHMS, BASELINES
from agents.base import Agent, Budget
from agents.fixed import FixedSchedule
from agents.planned import read_plan
from agents.policy import LearnedPolicy, build_policy, describe
from envs.errors import UserError
from envs.registry import unknown_name
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
    if ends != (model.info.t_start, model.info.t_end):
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


def make_agent(name: str, budget: Budget, *, model: Model, solver: str | None) -> Agent:
    """Return the agent that a command names: a baseline, an algorithm, a policy folder or a schedule file."""
    if name in BASELINES:
        agent: Agent = BASELINES.load(name)(budget)
        return agent
    path = Path(name)
    if name in ALGORITHMS:
        folder = find_policy(name, model.info.dataset)
    elif path.is_dir():
        folder = path
    elif path.is_file():
        plan = read_plan(path)
        assert plan.times is not None
        model.denoiser.schedule.check_times(plan.times)
        last = model.info.schedule.num_train_timesteps - 1
        told = plan.network_times if isinstance(plan, FixedSchedule) else None
        if told is not None and not (0 <= float(told.min()) <= float(told.max()) <= last):
            raise UserError(f"schedule {path}: network_times must lie in [0, {last}]")
        if solver is not None and plan.solver not in (None, solver):
            raise UserError(f"{path} was made for solver '{plan.solver}', not '{solver}'")
        return plan
    else:
        raise unknown_name("policy", name, [*BASELINES, *ALGORITHMS])
    policy = load_policy(folder)
    check_fit(policy, model, solver)
    if name in ALGORITHMS and folder.is_relative_to(PRETRAINED):
        print(f"no {name} policy trained here yet: using the one that ships", file=sys.stderr)
    return policy
