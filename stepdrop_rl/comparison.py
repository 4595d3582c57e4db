"""Contenders drawn from the same noise by the same solver at the same mean NFE, and what each is worth.

Shapes: M = images drawn; N = points of a contender's grid.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent, Budget
from agents.policy import LearnedPolicy
from envs.philox import Role
from stepdrop_rl.config import DataConfig
from stepdrop_rl.engine import Engine, Samples
from stepdrop_rl.grid_ends import END_LAMS
from stepdrop_rl.metrics import (
    BlockMean,
    FeatureExtractor,
    Reference,
    default_judge,
    gather,
    load_reference,
    over_blocks,
)
from stepdrop_rl.metrics.compute import gflops_per_call, latency, peak_memory_mb
from stepdrop_rl.metrics.distances import frechet_distance
from stepdrop_rl.models.unet import Model
from stepdrop_rl.policies import make_agent
from stepdrop_rl.pricing import price_for
from stepdrop_rl.solvers import SOLVERS

_LATENCY_REPEATS = 9
TUNED = "*"  # ends the name of a fixed schedule whose last time was chosen
_TUNING_IMAGES = 512
RESULT_SCHEMA = "stepdrop_rl.result/1"


@dataclass(frozen=True)
class Contender:
    """An agent ready to draw: its budget is settled.

    Args:
        agent: Who decides.
        price: What an evaluation costs it (0 where it does not ask).
    """

    agent: Agent
    price: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a contender was worth.

    Args:
        contender: Who.
        samples: What it drew.
        estimates: Metric → mean over the blocks, standard error, block values.
        teacher_mse: Mean squared distance to the full trajectory of the same noise, pixels in [−1, 1].
        latency_ms: Median wall time of one image drawn alone.
        gflops: Of the network, per image.
    """

    contender: Contender
    samples: Samples
    estimates: dict[str, BlockMean]
    teacher_mse: float
    latency_ms: float
    gflops: float

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.contender.agent.name

    @property
    def nfe_mean(self) -> float:
        """Mean evaluations per image."""
        return float(self.samples.nfe.double().mean())

    @property
    def nfe_std(self) -> float:
        """Their standard deviation over images."""
        return float(self.samples.nfe.double().std()) if len(self.samples.nfe) > 1 else 0.0

    def record(self) -> dict[str, Any]:
        """The result record of this contender, without what the whole run shares."""
        record: dict[str, Any] = {
            "policy": self.name,
            "num_samples": len(self.samples.images),
            "nfe_mean": self.nfe_mean,
            "nfe_std": self.nfe_std,
            "price": self.contender.price,
        }
        for metric, estimate in self.estimates.items():
            record[metric] = estimate.mean
            record[f"{metric}_error"] = estimate.standard_error
            record[f"{metric}_blocks"] = list(estimate.values)
        return record | {
            "is_std": statistics.stdev(self.estimates["is_mean"].values),
            "teacher_mse": self.teacher_mse,
            "images_per_second": self.samples.images_per_second,
            "latency_ms_p50": self.latency_ms,
            "gflops_per_image": self.gflops,
        }


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Where contenders meet: one model, one solver, one judge, one set of noise.

    Args:
        model: The diffusion model.
        data: Where the images are that it learned from.
        solver: Name of the solver.
        times: (N,) decision grid, for agents that bring none.
        seed: Of noise and decisions.
        batch_size: Images held at once.
        blocks: Disjoint blocks of noise.
        judge: Who judges images: an extractor that no reward knows (default: the data set's).
        mode: Learned policies take the likelier action.
    """

    model: Model
    data: DataConfig
    solver: str
    times: Tensor
    seed: int
    batch_size: int
    blocks: int
    judge: str | None = None
    mode: bool = False

    @cached_property
    def _judging(self) -> tuple[FeatureExtractor, Reference]:
        return load_reference(self.data, self.judge or default_judge(self.data.name), self.times.device)

    @property
    def extractor(self) -> FeatureExtractor:
        """The judge's network."""
        return self._judging[0]

    @property
    def reference(self) -> Reference:
        """The real images as the judge sees them."""
        return self._judging[1]

    def engine(self, agent: Agent, role: Role = Role.EVALUATION) -> Engine:
        """An engine for ``agent``."""
        learned = isinstance(agent, LearnedPolicy)
        return Engine(
            denoiser=self.model.denoiser,
            solver=SOLVERS.load(self.solver)(),
            times=self.times,
            seed=self.seed,
            role=role,
            batch_size=self.batch_size,
            projection=agent.projection if isinstance(agent, LearnedPolicy) else None,
            mode=self.mode and learned,
        )

    def contender(self, name: str, nfe: float, price: float | None = None) -> Contender:
        """Make the agent called ``name`` spend ``nfe`` evaluations at most, or pay ``price``."""
        info = self.model.info
        budget = Budget(nfe, info.t_start, info.t_end, len(self.times))
        return self.settle(make_agent(name, budget, model=self.model, solver=self.solver), nfe, price)

    def settle(self, agent: Agent, nfe: float, price: float | None = None) -> Contender:
        """Find the price at which a learned policy spends ``nfe``; others have their budget already."""
        if not isinstance(agent, LearnedPolicy):
            return Contender(agent)
        if price is None:
            price = price_for(agent, self.engine(agent, Role.VALIDATION), nfe).price
        return Contender(agent, price)

    def tuned(self, name: str, nfe: float) -> Contender:
        """The fixed schedule ``name`` with the last time that suits its budget best; its name gets a ``*``.

        A policy may leave the grid's last points out, a schedule through both of the model's ends may not.
        The last time is chosen on validation noise, by the validation judge.
        """
        extractor, reference = load_reference(self.data, "validation", self.times.device)
        info, schedule = self.model.info, self.model.denoiser.schedule
        ends = schedule.time_of(torch.tensor(END_LAMS, dtype=torch.float64)).tolist()
        best: tuple[float, Contender] | None = None
        for end in [info.t_end, *(end for end in ends if info.t_end < end < info.t_start)]:
            agent = make_agent(
                name,
                Budget(nfe, self.model.info.t_start, end, len(self.times)),
                model=self.model,
                solver=self.solver,
            )
            images = self.engine(agent, Role.VALIDATION).sample(agent, _TUNING_IMAGES).images
            distance = frechet_distance(gather(images, extractor)[0], reference.statistics)
            if best is None or distance < best[0]:
                agent.name = f"{name}{TUNED}"
                best = (distance, Contender(agent))
        assert best is not None, "the model's own end is always tried"
        return best[1]

    def draw(
        self, contender: Contender, num_samples: int, progress: Callable[[int], None] | None = None
    ) -> Samples:
        """Draw images 0 … of the evaluation noise."""
        engine = self.engine(contender.agent)
        engine.sample(contender.agent, min(8, num_samples), price=contender.price)  # warms caches and kernels
        return engine.sample(contender.agent, num_samples, price=contender.price, progress=progress)

    def outcome(self, contender: Contender, samples: Samples, teacher: Tensor) -> Outcome:
        """Judge what a contender drew."""
        estimates = over_blocks(*gather(samples.images, self.extractor), self.reference, self.blocks)
        error = (samples.images - teacher).square().mean()
        call = gflops_per_call(
            self.model.denoiser.network,
            torch.zeros(1, *self.model.denoiser.shape, device=self.times.device),
            torch.zeros(1, device=self.times.device),
        )
        nfe = float(samples.nfe.double().mean())
        return Outcome(contender, samples, estimates, float(error), self._latency(contender), call * nfe)

    def _latency(self, contender: Contender) -> float:
        engine = self.engine(contender.agent)
        images = itertools.count()  # a policy does not spend the same on every image

        def draw_one() -> Samples:
            return engine.sample(contender.agent, 1, price=contender.price, first_image=next(images))

        return latency(draw_one, device=self.times.device, repeats=_LATENCY_REPEATS, warmup=1).p50


def records(
    outcomes: Sequence[Outcome], arena: Arena, *, git_commit: str, run_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Result records, the requested policy first."""
    shared = {
        "solver": arena.solver,
        "dataset": arena.model.info.dataset,
        "model_hash": arena.model.hash,
        "seed": arena.seed,
        "blocks": arena.blocks,
        "extractor": arena.extractor.name,
        "extractor_hash": arena.extractor.content_hash,
        "peak_memory_mb": peak_memory_mb(arena.times.device),
        "device": device_name(arena.times.device),
        "git_commit": git_commit,
    }
    return [
        outcome.record() | shared | {"mlflow_run_id": run_id}
        for outcome, run_id in zip(outcomes, run_ids, strict=True)
    ]


def device_name(device: torch.device) -> str:
    """What computed, for a record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"
