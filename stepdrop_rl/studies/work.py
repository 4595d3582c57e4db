"""Doing a study's jobs. Each leaves a file; a job whose file is there, and fits, is not done again.

Shapes: M = images drawn; N = points of a contender's grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, RecurrentAgent, orders_of
from agents.controls import coins, dealt, habit, mean_schedule, shuffled
from agents.fixed import whole
from agents.policy import LearnedPolicy
from envs.errors import OutOfReachError, UserError
from stepdrop_rl.arena import Arena, Contender, budget_of
from stepdrop_rl.comparison import device_name
from stepdrop_rl.config import EnvConfig, SearchConfig, StudyConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.engine import Samples
from stepdrop_rl.environment import data_of, decision_grid
from stepdrop_rl.metrics import default_judge, distance_name, gather, over_blocks
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.policies import check_fit, check_range, given, load_policy, make_agent
from stepdrop_rl.policy_training import changes
from stepdrop_rl.report.figures import images_by_schedule, png
from stepdrop_rl.studies.plan import FULL, Job, baselines_of, needs, training_of
from stepdrop_rl.teacher import full_trajectory
from stepdrop_rl.weights import holds_weights, load_tensors, read_json, save_tensors, write_bytes, write_json

SCHEMA = "stepdrop_rl.study_result/1"
_OF_ITS_SCHEDULES: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Agent]] = {
    "mean_schedule": mean_schedule,
    "dealt": dealt,
    "coins": coins,
}  # controls that are made of what a policy evaluated
Result = dict[str, Any]


class Workshop:
    """Where the jobs of a study are done.

    Args:
        config: The study.
        root: Folder of its files.
    """

    def __init__(self, config: StudyConfig, root: Path) -> None:
        self.config = config
        self.root = root
        self.made = Path(config.made) if config.made else root
        self.device = resolve_device(config.device)
        self.model = load_model(
            config.model or config.data.name,
            self.device,
            precision=config.precision,
            dataset=config.data.name,
            compiled=config.compile,
        )
        self.data = data_of(self.model, config.data)
        first = default_judge(self.data.name)
        self.judges = config.judges or [first, "validation" if first == "judge" else "judge"]
        self.arenas: dict[tuple[str, str], Arena] = {}
        self._judging = {name: self.arena(config.solvers[0], name) for name in self.judges}
        # What cannot be run, and a judge that cannot be had, is noticed before anything is trained.
        for name, plan in baselines_of(config).items():
            if plan is not None:
                check_range(plan, name, self.model.denoiser.schedule)
        self.distances = {name: distance_name(arena.extractor.name) for name, arena in self._judging.items()}

    def arena(self, solver: str, judge: str | None = None) -> Arena:
        """One model, one solver, one judge; made once."""
        key = (solver, judge or self.judges[0])
        if key not in self.arenas:
            self.arenas[key] = Arena(
                model=self.model,
                data=self.data,
                solver=solver,
                times=decision_grid(self.model, EnvConfig().num_decisions).to(self.device),
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                blocks=self.config.blocks,
                judge=key[1],
            )
        return self.arenas[key]

    def path(self, job: Job) -> Path:
        """The file that shows that it is done."""
        return job.path(self.root if job.kind == "judge" else self.made)

    def done(self, job: Job) -> bool:
        """Whether its file is there and is of these settings."""
        path = self.path(job)
        if not path.is_file():
            return False
        found = read_json(path)
        if job.kind == "train":
            training = training_of(self.config, job, self.made)
            history = found.get("history") or [{"decisions": 0}]
            ended = bool(history[-1]["decisions"] >= training.decisions)
            return ended and not changes(found.get("settings", {}), training)
        if job.kind == "search":
            seen = found.get("extractor", "reward")
            return bool(found.get("model_hash") == self.model.hash and seen == self.config.extractor)
        return bool(found.get("fingerprint") == self.fingerprint(job))

    def require_made(self, todo: Iterable[Job]) -> None:
        """Raise :class:`UserError` where what another study made is to be judged, but is not there."""
        for job in todo:
            if self.config.made and job.kind != "judge" and not self.done(job):
                raise UserError(f"{self.made} does not hold what was to be made there: {job.label}")

    def require_same_settings(self, todo: Iterable[Job]) -> None:
        """Raise :class:`UserError` where a policy's folder holds a run that learned by other settings."""
        for job in todo:
            path = self.path(job)
            kept = read_json(path).get("settings") if job.kind == "train" and path.is_file() else None
            changed = changes(kept, training_of(self.config, job, self.made)) if kept else []
            if changed:
                raise UserError(
                    f"{path.parent} holds a run of other settings ({', '.join(changed)} differ): "
                    "remove it, or call the policy otherwise"
                )

    def do(self, job: Job) -> None:
        """Do it; a training goes on where it was cut."""
        if job.kind == "train":
            from stepdrop_rl.train_policy import run as train

            training = training_of(self.config, job, self.made)
            state = self.path(job)
            resume = holds_weights(state.parent, state.stem)
            if not resume:  # a clone has the metadata alone of a run that was cut: nothing to go on from
                state.unlink(missing_ok=True)
            train(replace(training, resume=resume))
        elif job.kind == "search":
            from stepdrop_rl.search import run as search

            search(
                SearchConfig(
                    seed=self.config.seed,
                    device=self.config.device,
                    tracking=self.config.tracking,
                    data=self.config.data,
                    model=self.config.model,
                    method=job.name,
                    nfe=int(job.nfe),
                    solver=job.solver,
                    extractor=self.config.extractor,
                    precision=self.config.precision,
                    compile=self.config.compile,
                    output=str(self.path(job)),
                )
            )
        else:
            self._judge(job)

    def fingerprint(self, job: Job) -> str:
        """Of what a result depends on in this version: judges are known by name, the machine by its kind."""
        config = self.config
        parts = [self.model.hash, job.label, config.num_samples, config.blocks, config.seed]
        parts += [self.device.type, config.precision, *self.judges]
        if config.compile and self.model.denoiser.autocast is not None:
            parts.append("compiled")  # in bfloat16 that is more than rounding
        for source in self._sources(job):
            parts.append(hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else "none")
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _sources(self, job: Job) -> list[Path]:
        """The files that a contender is made of."""
        sources = []
        for need in needs(self.config, job):
            path = self.path(need)
            if need.kind == "train":
                sources += [path.parent / "policy.safetensors", path.parent / "policy.json"]
            else:
                sources += [*self._sources(need), path]
        if (
            job.name not in {FULL, *self.config.policies, *self.config.searches}
            and given(job.name) is not None
        ):
            sources.append(Path(job.name))  # a list of times is no file, its name says it all
        return sources

    def _judge(self, job: Job) -> None:
        path = self.path(job)
        head = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint(job),
            "name": job.name,
            "solver": job.solver,
            "nfe": job.nfe,
            "seed": job.seed,
            "control": job.control,
            "device": f"{device_name(self.device)}, {self.model.denoiser.numbers}",
        }
        arena = self.arena(job.solver)
        if job.control == "mode":
            arena = replace(arena, mode=True)
        try:
            contender = self._contender(job, arena)
        except OutOfReachError as error:  # a result, too; a file that is missing is none
            write_json(path, head | {"unreachable": str(error)})
            return
        samples = arena.draw(contender, self.config.num_samples)
        measured = self._measured(contender, samples)
        if job.name in self.config.policies and job.control is None:
            tensors = {"evaluated": packed(samples.evaluated), "times": samples.times}
            save_tensors(path.with_suffix(".safetensors"), tensors)
            orders = orders_of(contender.agent)
            figure = images_by_schedule(samples, orders) if job.seed == 0 else None
            if figure is not None:
                write_bytes(path.with_suffix(".png"), png(figure))
        write_json(path, head | measured)  # last: it says that all of it is there

    def _measured(self, contender: Contender, samples: Samples) -> Result:
        judged = {}
        for name, arena in self._judging.items():
            features, logits = gather(samples.images, arena.extractor)
            found = over_blocks(features, logits, arena.reference, self.config.blocks)
            judged[name] = {metric: list(value.values) for metric, value in found.items()}
        return {
            "agent": contender.agent.name,
            "price": contender.price,
            "nfe_mean": float(samples.nfe.double().mean()),
            "nfe_std": float(samples.nfe.double().std()),
            "images_per_second": samples.images_per_second,
            "occupancy": samples.occupancy,
            "times": samples.times.tolist(),
            "rates": samples.evaluated.double().mean(0).tolist(),
            "judges": judged,
        }

    def _contender(self, job: Job, arena: Arena) -> Contender:
        if job.name == FULL:
            info = self.model.info
            return Contender(full_trajectory(info.t_start, info.t_end, int(job.nfe)))
        if job.name in self.config.searches:
            path = self.path(replace(job, kind="search"))
            budget = budget_of(self.model, job.nfe, len(arena.times))
            return Contender(make_agent(str(path), budget, model=self.model, solver=job.solver))
        if job.name not in self.config.policies:
            return arena.contender(job.name, job.nfe)
        policy = load_policy(self.path(replace(job, kind="train", control=None)).parent)
        check_fit(policy, self.model, job.solver)
        if job.control in (None, "mode"):
            return arena.settle(policy, job.nfe)
        return self._controlled(job, policy)

    def _controlled(self, job: Job, policy: LearnedPolicy) -> Contender:
        """What is left of a policy that was judged before."""
        path = self.path(replace(job, control=None))
        judged = read_json(path)
        if "unreachable" in judged:
            raise OutOfReachError(judged["unreachable"])
        drawn = load_tensors(path.with_suffix(".safetensors"))
        times: Tensor = drawn["times"]
        evaluated = unpacked(drawn["evaluated"], len(times))
        if job.control == "habit":
            return Contender(habit(policy, whole(job.nfe)))
        control, _, group = str(job.control).partition("_")
        if control == "shuffled":
            if isinstance(policy, RecurrentAgent):
                raise OutOfReachError(
                    "a policy with a memory cannot be shown other samples from point to point"
                )
            return Contender(shuffled(policy, group or None), judged["price"])
        make = _OF_ITS_SCHEDULES[str(job.control)]
        return Contender(make(times, evaluated, policy.orders))


def packed(evaluated: Tensor) -> Tensor:
    """What was evaluated, (M, N) bool, as bits: small enough for a repository."""
    return torch.from_numpy(np.packbits(evaluated.cpu().numpy(), axis=1))


def unpacked(bits: Tensor, points: int) -> Tensor:
    """(M, N) bool of :func:`packed`, N = ``points``."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=points)).bool()
