"""The engine against diffusers' own pipeline, and against itself with more evaluations."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from agents.fixed import FixedSchedule
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.engine import Engine
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.integrations.samplers import betas
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.solvers import make_solver

PIPELINE_STEPS = 20


def measure_pipeline(config: BenchmarkConfig) -> list[Row]:
    """Images per second against diffusers' ``DDIMPipeline``: the same U-Net, steps, batch and number type."""
    device = resolve_device(config.device)
    rows = []
    for precision in ("float32", "bfloat16"):
        model = load_model(config.model or config.data.name, device, precision=precision)
        scheduler = DDIMScheduler(
            trained_betas=betas(model.denoiser.schedule.alpha_bar),
            prediction_type=model.info.prediction,
            clip_sample=True,
        )
        pipeline = DDIMPipeline(
            load_model(config.model or config.data.name, device).denoiser.network, scheduler
        )
        pipeline.set_progress_bar_config(disable=True)

        def theirs(pipeline: Any = pipeline) -> None:
            pipeline(batch_size=config.batch_size, num_inference_steps=PIPELINE_STEPS, output_type="np")

        scheduler.set_timesteps(PIPELINE_STEPS)
        schedule = FixedSchedule("leading", scheduler.timesteps.double())
        engine = Engine(
            denoiser=model.denoiser,
            solver=make_solver("ddim"),
            times=scheduler.timesteps.double(),
            seed=config.seed,
            batch_size=config.batch_size,
        )

        def ours(engine: Engine = engine, schedule: FixedSchedule = schedule) -> None:
            engine.sample(schedule, config.batch_size)

        mine, other, ratio = interleaved(ours, theirs, config.repeats)
        rows.append(
            {
                "what": f"DDIM, {PIPELINE_STEPS} steps, batch {config.batch_size}, {precision} to float32",
                "images/s": config.batch_size / mine,
                "DDIMPipeline images/s": config.batch_size / other,
                "ratio": 1 / ratio,
            }
        )
    return [*rows, _proportional(config, model.denoiser)]


def _proportional(config: BenchmarkConfig, denoiser: Any) -> Row:
    """Speed-up from 50 evaluations an image to 5: wall time should follow the evaluations."""
    ends = default_ends(denoiser.schedule)
    many, few = (torch.linspace(*ends, count, dtype=torch.float64) for count in (50, 5))
    engine = Engine(
        denoiser=denoiser,
        solver=make_solver("ddim"),
        times=many,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    _, fast, ratio = interleaved(
        lambda: engine.sample(FixedSchedule("many", many), config.batch_size),
        lambda: engine.sample(FixedSchedule("few", few), config.batch_size),
        config.repeats,
    )
    return {
        "what": "5 evaluations against 50",
        "images/s": config.batch_size / fast,
        "DDIMPipeline images/s": "–",
        "ratio": ratio,
    }
