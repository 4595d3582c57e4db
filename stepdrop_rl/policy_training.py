"""A policy's training run: when the judge looks, what is kept, and how a resumed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from agents.policy import LearnedPolicy, PolicyInfo
from agents.sb3 import Learner
from envs.errors import UserError
from stepdrop_rl.config import TrainPolicyConfig
from stepdrop_rl.environment import World
from stepdrop_rl.interrupt import StopRequest
from stepdrop_rl.policies import save_policy
from stepdrop_rl.report.progress import progress_bar
from stepdrop_rl.tracking import Run
from stepdrop_rl.validation import Look, ValidationJudge
from stepdrop_rl.weights import load_weights, save_weights

STATE = "state"  # of the run, for --resume; the policy itself lies beside it
_SAFE = 600.0  # seconds between two states at most: a machine that goes away takes no more than that


class Session:
    """One training run: looks, checkpoints, progress.

    Args:
        config: Its settings; where they say ``resume`` it goes on from what ``folder`` holds.
        world: The decision problem.
        judge: Looks at the policy now and then.
        learner: What learns.
        folder: Where the judge's favourite and the run's state are kept.
        tracker: Takes what the judge saw.
    """

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
                "extractor": config.env.extractor,
                "hyperparameters": self.learner.hyperparameters,
                "validation": self.history,
            },
        )

    def train(self) -> None:
        """Learn, look, keep."""
        config = self.config
        began, before = time.monotonic(), self.seconds
        moving = self.learner.env.core.moving
        price_steps = 0 if moving is None else moving.steps
        next_look = (self.decisions // config.judge_every + 1) * config.judge_every
        next_state = began + _SAFE
        with StopRequest(config.max_minutes) as stop, progress_bar() as bar:
            task = bar.add_task(config.algo, total=config.decisions, completed=self.decisions, note="")

            def go_on(decisions: int) -> bool:
                nonlocal next_look, next_state, price_steps
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
                    next_state = 0.0
                if time.monotonic() >= next_state:
                    self.save_state()
                    next_state = time.monotonic() + _SAFE
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
        look = self.judge.look(self.policy())
        self.tracker.log_metrics(look.metrics(), self.decisions)
        self.history.append({"decisions": self.decisions, "score": look.score, "table": look.table})
        if self.best is None or look.score < self.best:
            self.best = look.score
            save_policy(self.folder, self.policy(look))

    def save_state(self) -> None:
        """What --resume needs."""
        metadata = {"settings": _identity(self.config), "history": self.history, "seconds": self.seconds}
        save_weights(self.folder, STATE, self.learner.state(), metadata)

    def _resume(self) -> None:
        tensors, metadata = load_weights(self.folder, STATE)
        changed = _changed(metadata["settings"], _identity(self.config))
        if changed:
            raise UserError(
                f"cannot resume {self.folder}: {', '.join(changed)} differ from the run's settings"
            )
        try:
            self.learner.load_state(tensors)
        except (KeyError, RuntimeError):  # a tensor is missing, or has another shape
            raise UserError(
                f"cannot resume {self.folder}: an older version of '{self.config.algo}' wrote its state"
            ) from None
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


def looks_of(config: TrainPolicyConfig) -> dict[str, Tensor]:
    """The state of the run to start from, looks included, if they are looks at this very problem.

    A run that learned from another's looks has not copied them: theirs are taken.
    """
    first = config.start_from
    while first is not None:
        folder = Path(first)
        tensors, metadata = load_weights(folder, STATE)
        settings = metadata["settings"]
        changed = _changed(settings, _identity(config), ("data", "model", "algo", "env", "precision"))
        if changed:
            raise UserError(f"cannot start from the looks in {folder}: {', '.join(changed)} differ")
        first = settings.get("start_from")
    return tensors


def _identity(config: TrainPolicyConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers."""
    free = ("output", "resume", "max_minutes", "tracking", "json", "device", "compile")
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    settings["data"] = config.data.name  # not where it lies
    # As it is kept: a number that is a key becomes text.
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def changes(settings: dict[str, Any], config: TrainPolicyConfig) -> list[str]:
    """Which of a run's kept ``settings`` are not those of ``config``."""
    return _changed(settings, _identity(config))


def _changed(before: dict[str, Any], now: dict[str, Any], among: Sequence[str] | None = None) -> list[str]:
    """Which settings (``among`` these) differ; one that a run of an older version did not have was at its
    default.
    """
    defaults = _identity(TrainPolicyConfig())
    before = {**defaults, **before, "env": {**defaults["env"], **before.get("env", {})}}
    return sorted(key for key in among or now if before[key] != now[key])
