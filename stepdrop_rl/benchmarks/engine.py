"""The engine against bare network calls."""

from __future__ import annotations

from collections.abc import Callable

import torch

from agents.base import Budget
from agents.fixed import quadratic
from stepdrop_rl.arena import make_arena
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig, EvaluateConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.solvers import SOLVERS, make_solver

ENGINE_EVALUATIONS = 10
ENGINE_BATCHES = 20  # of images that a policy draws: the last ones leave slots empty


def measure_engine(config: BenchmarkConfig) -> list[Row]:
    """Wall time of fixed schedules and of a policy against bare network calls of the same batch size."""
    device = resolve_device(config.device)
    model = load_model(config.model or config.data.name, device)
    agent = quadratic(Budget(ENGINE_EVALUATIONS, model.info.t_start, model.info.t_end, ENGINE_EVALUATIONS))
    assert agent.times is not None
    x = torch.randn(config.batch_size, *model.denoiser.shape, device=device)
    rows = []
    for name in SOLVERS:
        engine = Engine(
            denoiser=model.denoiser,
            solver=make_solver(name),
            times=agent.times,
            seed=config.seed,
            batch_size=config.batch_size,
        )

        def sample(engine: Engine = engine) -> None:
            engine.sample(agent, config.batch_size)

        @torch.no_grad()
        def bare() -> None:  # in the engine's number type, and replayed as a graph where its calls are
            for t in agent.times.tolist():  # type: ignore[union-attr]
                output = model.denoiser.raw(x, torch.full((len(x),), t, device=device))
            output.cpu()

        ours, network, ratio = interleaved(sample, bare, config.repeats)
        rows.append(
            {
                "what": f"{name}, {ENGINE_EVALUATIONS} evaluations, batch {config.batch_size}",
                "engine ms": 1000 * ours,
                "network ms": 1000 * network,
                "ratio": ratio,
                "slots in use": 1.0,
            }
        )
    return [*rows, _policy_in_engine(config, bare)]


def _policy_in_engine(config: BenchmarkConfig, bare: Callable[[], None]) -> Row:
    """A learned policy's wall time against as many bare network calls as it made evaluations."""
    choice = EvaluateConfig(
        policy="ppo",
        data=config.data,
        model=config.model,
        device=config.device,
        target_nfe=config.target_nfe,
        batch_size=config.batch_size,
    )
    arena, (agent, price) = make_arena(choice, blocks=choice.blocks)
    engine = arena.engine(agent)
    count = ENGINE_BATCHES * config.batch_size
    samples = engine.sample(agent, count, price=price)
    ours, network, ratio = interleaved(lambda: engine.sample(agent, count, price=price), bare, config.repeats)
    calls = float(samples.nfe.sum()) / config.batch_size / ENGINE_EVALUATIONS  # of bare(), for as much work
    return {
        "what": f"ppo, {float(samples.nfe.double().mean()):.2f} evaluations, batch {config.batch_size}",
        "engine ms": 1000 * ours,
        "network ms": 1000 * network * calls,
        "ratio": ratio / calls,
        "slots in use": samples.occupancy,
    }
