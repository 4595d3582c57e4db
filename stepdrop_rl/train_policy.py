"""``python -m stepdrop_rl.train_policy``: learn when to evaluate the network."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import TrainPolicyConfig

if TYPE_CHECKING:
    from agents.policy import LearnedPolicy, PolicyInfo
    from agents.sb3 import Learner
    from stepdrop_rl.environment import World
    from stepdrop_rl.tracking import Run
    from stepdrop_rl.validation import Look, ValidationJudge

STATE = "state"  # of the run, for --resume; the policy itself lies beside it


def run(config: TrainPolicyConfig) -> None:
    """Learn until the declared decisions, an interruption or the time limit; keep the judge's favourite."""
    from agents import ALGORITHMS
    from envs.rewards import REWARDS
    from envs.sb3 import StepDropVecEnv
    from stepdrop_rl.data import DATASETS
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.environment import make_world
    from stepdrop_rl.models.unet import load_model
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
    model = load_model(config.model or config.data.name, device)
    world = make_world(config.env, model=model, data=config.data)
    judge = _judge(config, world)
    tracker: Run  # begins when nothing can be wrong any more
    learner: Learner = ALGORITHMS.load(config.algo)(
        StepDropVecEnv(world.core(config.num_envs)),
        seed=config.seed,
        hyperparameters=config.hyperparameters,
        log=lambda metrics, step: tracker.log_metrics(metrics, step),
    )
    if config.start_from is not None and not config.resume:
        learner.start_from(_first_policy(config, world), config.seed)
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
        session = _Session(config, world, judge, learner, folder, tracker)
        session.train()
        tracker.log_artifact(folder / "policy.json")
        tracker.log_artifact(folder / "policy.safetensors")
        where = tracker.where()
    if config.json is not None:
        write_json(config.json, session.record())
    print(session.summary())
    if where:
        print(f"learning curves: {where}")


def _first_policy(config: TrainPolicyConfig, world: World) -> LearnedPolicy:
    """The policy to begin with, if it is one of this very problem."""
    from envs.errors import UserError
    from stepdrop_rl.policies import check_fit, load_policy

    assert config.start_from is not None
    policy = load_policy(Path(config.start_from))
    check_fit(policy, world.model, config.env.solver)
    if policy.info.times != world.times.tolist():
        raise UserError(f"the policy in {config.start_from} was trained on another grid of decisions")
    return policy


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


class _Session:
    """One training run: looks, checkpoints, progress."""

    def __init__(
        self,
        config: TrainPolicyConfig,
        world: World,
        judge: ValidationJudge,
        learner: Learner,
        folder: Path,
        tracker: Run,
    ) -> None:
        self.config = config
        self.world = world
        self.judge = judge
        self.learner = learner
        self.folder = folder
        self.tracker = tracker
        self.history: list[dict[str, Any]] = []
        self.best: float | None = None
        self.seconds = 0.0
        self.reason: str | None = None
        if config.resume:
            self._resume()

    @property
    def decisions(self) -> int:
        """Decisions learned from so far."""
        return self.learner.num_decisions

    def info(self, look: Look | None = None) -> PolicyInfo:
        """What the policy is trained for, and how it was."""
        from agents.policy import PolicyInfo

        world, config = self.world, self.config
        moving = self.learner.env.core.moving
        table = [[price, nfe] for price, nfe, _ in look.table] if look is not None else []
        return PolicyInfo(
            algo=config.algo,
            activation=self.learner.activation,
            output=self.learner.output,
            dataset=world.model.info.dataset,
            model_hash=world.model.hash,
            solver=config.env.solver,
            times=world.times.tolist(),
            prices=list(config.env.prices) if moving is None else [moving.price] * 2,
            target_nfe=config.env.target_nfe,
            num_features=0 if world.projection is None else world.projection.matrix.shape[1],
            features=list(config.env.feature_names),
            price_table=table,
            training={
                "seed": config.seed,
                "decisions": self.decisions,
                "seconds": round(self.seconds, 1),
                "reward": config.env.reward,
                "hyperparameters": self.learner.hyperparameters,
                "validation": self.history,
            },
        )

    def train(self) -> None:
        """Learn, look, keep."""
        from stepdrop_rl.interrupt import StopRequest
        from stepdrop_rl.report.progress import progress_bar

        config = self.config
        began, before = time.monotonic(), self.seconds
        moving = self.learner.env.core.moving
        price_steps = 0 if moving is None else moving.steps
        next_look = (self.decisions // config.judge_every + 1) * config.judge_every
        with StopRequest(config.max_minutes) as stop, progress_bar() as bar:
            task = bar.add_task(config.algo, total=config.decisions, completed=self.decisions, note="")

            def go_on(decisions: int) -> bool:
                nonlocal next_look, price_steps
                self.seconds = before + time.monotonic() - began
                note = "" if self.best is None else f"validation {self.best:.3f}"
                bar.update(task, completed=decisions, note=note)
                if moving is not None and moving.steps > price_steps:
                    price_steps = moving.steps
                    metrics = {"price/price": moving.price, "price/nfe": moving.nfe}
                    self.tracker.log_metrics(metrics, decisions)
                if decisions >= next_look:
                    next_look = (decisions // config.judge_every + 1) * config.judge_every
                    self.look()
                    self.save_state()
                return not stop

            self.learner.learn(config.decisions, go_on)
            self.seconds = before + time.monotonic() - began
            bar.update(task, completed=min(self.decisions, config.decisions))
        self.reason = stop.reason if self.decisions < config.decisions else None
        if not self.history or self.history[-1]["decisions"] != self.decisions:
            self.look()
        self.save_state()

    def policy(self, look: Look | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        return self.learner.policy(self.info(look), self.world.projection)

    def look(self) -> None:
        """Let the validation judge look; keep the policy if it is the best so far."""
        from stepdrop_rl.policies import save_policy

        look = self.judge.look(self.policy())
        self.tracker.log_metrics(look.metrics(), self.decisions)
        self.history.append({"decisions": self.decisions, "score": look.score, "table": look.table})
        if self.best is None or look.score < self.best:
            self.best = look.score
            save_policy(self.folder, self.policy(look))

    def save_state(self) -> None:
        """What --resume needs."""
        from stepdrop_rl.weights import save_weights

        metadata = {"settings": _identity(self.config), "history": self.history, "seconds": self.seconds}
        save_weights(self.folder, STATE, self.learner.state(), metadata)

    def _resume(self) -> None:
        from envs.errors import UserError
        from stepdrop_rl.weights import load_weights

        tensors, metadata = load_weights(self.folder, STATE)
        changed = _changed(metadata["settings"], _identity(self.config))
        if changed:
            raise UserError(
                f"cannot resume {self.folder}: {', '.join(changed)} differ from the run's settings"
            )
        self.learner.load_state(tensors)
        self.history = metadata["history"]
        self.best = min((entry["score"] for entry in self.history), default=None)
        self.seconds = metadata["seconds"]

    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "policy": self.config.algo,
            "folder": str(self.folder),
            "decisions": self.decisions,
            "seconds": self.seconds,
            "stopped_by": self.reason,
            "validation": self.history,
        }

    def summary(self) -> str:
        """A line or two for the person who waited."""
        config = self.config
        best = min(self.history, key=lambda entry: entry["score"])
        state = "" if self.reason is None else f" (stopped by {self.reason}; --resume goes on)"
        spent = ", ".join(f"{price:.3g} → {nfe:.2f}" for price, nfe, _ in best["table"])
        done = f"{self.decisions:,} of {config.decisions:,} decisions in {self.seconds:.0f} s"
        return (
            f"{self.folder}: {done}{state}\n"
            f"the validation judge preferred the policy of {best['decisions']:,} decisions: it is kept\n"
            f"price → evaluations per image: {spent}"
        )


def _identity(config: TrainPolicyConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers."""
    free = ("output", "resume", "max_minutes", "tracking", "json", "device")
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    settings["data"] = config.data.name  # not where it lies
    return settings


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which settings differ; one that a run of an older version did not have was at its default."""
    defaults = _identity(TrainPolicyConfig())
    before = {**defaults, **before, "env": {**defaults["env"], **before.get("env", {})}}
    return sorted(key for key in now if before[key] != now[key])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(TrainPolicyConfig, run, "train_policy", argv)


if __name__ == "__main__":
    sys.exit(main())
