"""``python -m stepdrop_rl.train_policy``: learn when to evaluate the network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stepdrop_rl.cli import command
from stepdrop_rl.config import TrainPolicyConfig

if TYPE_CHECKING:
    from agents.sb3 import Learner
    from stepdrop_rl.environment import World
    from stepdrop_rl.tracking import Run
    from stepdrop_rl.validation import ValidationJudge


def run(config: TrainPolicyConfig) -> None:
    """Learn until the declared decisions, an interruption or the time limit; keep the judge's favourite."""
    from agents import ALGORITHMS
    from envs.rewards import REWARDS
    from envs.sb3 import StepDropVecEnv
    from stepdrop_rl.data import DATASETS
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.environment import make_world
    from stepdrop_rl.models.unet import load_model
    from stepdrop_rl.policy_training import STATE, Session
    from stepdrop_rl.runs import prepare_output, run_folder
    from stepdrop_rl.solvers import make_solver
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    checked = [(DATASETS, [config.data.name]), (ALGORITHMS, [config.algo])]
    checked += [(REWARDS, list(config.env.reward))]
    make_solver(config.env.solver)
    for registry, names in checked:  # before anything is computed
        for name in names:
            registry[name]
    device = resolve_device(config.device)
    model = load_model(
        config.model or config.data.name,
        device,
        precision=config.precision,
        dataset=config.data.name,
        compiled=config.compile,
    )
    world = make_world(config.env, model=model, data=config.data)
    judge = _judge(config, world)
    tracker: Run  # begins when nothing can be wrong any more
    learner: Learner = ALGORITHMS.load(config.algo)(
        StepDropVecEnv(world.core(config.num_envs)),
        seed=config.seed,
        hyperparameters=config.hyperparameters,
        log=lambda metrics, step: tracker.log_metrics(metrics, step),
    )
    if config.start_from is not None:
        _start(learner, config, world)
    # Only now: an earlier run is not moved aside for settings that cannot work.
    folder = prepare_output(
        config.output,
        run_folder(config.data.name, config.algo),
        marker=f"{STATE}.json",
        resume=config.resume,
    )
    name = f"{config.algo}-{config.data.name}"
    tags = {"command": "train_policy"}
    with start_run(name, mode=config.tracking, config=asdict(config), tags=tags) as tracker:
        tracker.log_params({f"{config.algo}.{key}": value for key, value in learner.hyperparameters.items()})
        tracker.log_params({"model_hash": model.hash})
        session = Session(config, world, judge, learner, folder, tracker)
        session.train()
        tracker.log_artifact(folder / "policy.json")
        tracker.log_artifact(folder / "policy.safetensors")
        where = tracker.where()
    if config.json is not None:
        write_json(config.json, session.record())
    print(session.summary())
    if where:
        print(f"learning curves: {where}")


def _start(learner: Learner, config: TrainPolicyConfig, world: World) -> None:
    """Let it begin where another run ended, if that was one of this very problem.

    One that goes on has all but looks in its own state: it takes the same ones over as when it began.
    """
    from agents.forking import ForkLearner
    from envs.errors import UserError
    from stepdrop_rl.policies import check_fit, load_policy
    from stepdrop_rl.policy_training import looks_of

    assert config.start_from is not None
    if isinstance(learner, ForkLearner):
        check_fit(load_policy(Path(config.start_from)), world.model, config.env.solver)
        learner.look_again(looks_of(config))
        return
    if config.resume:
        return
    policy = load_policy(Path(config.start_from))
    check_fit(policy, world.model, config.env.solver)
    if policy.info.times != world.times.tolist():
        raise UserError(f"the policy in {config.start_from} was trained on another grid of decisions")
    learner.start_from(policy, config.seed)


def _judge(config: TrainPolicyConfig, world: World) -> ValidationJudge:
    from envs.philox import Role
    from stepdrop_rl.engine import Engine
    from stepdrop_rl.environment import data_of
    from stepdrop_rl.metrics import gather, load_reference
    from stepdrop_rl.metrics.distances import frechet_distance
    from stepdrop_rl.solvers import make_solver
    from stepdrop_rl.validation import ValidationJudge

    device = world.times.device
    extractor, reference = load_reference(data_of(world.model, config.data), "validation", device)
    engine = Engine(
        denoiser=world.model.denoiser,
        solver=make_solver(config.env.solver),
        times=world.times,
        seed=config.seed,
        role=Role.VALIDATION,
        projection=world.projection,
    )
    return ValidationJudge(
        engine,
        lambda images: frechet_distance(gather(images, extractor)[0], reference.statistics),
        config.target_nfe if config.env.target_nfe is None else [config.env.target_nfe],
        config.judge_samples,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(TrainPolicyConfig, run, "train_policy", argv)


if __name__ == "__main__":
    sys.exit(main())
