"""The engine against diffusers' own pipeline, and against itself with more evaluations."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from agents.fixed import FixedSchedule
from stepdrop_rl.arena import make_arena
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig, EvaluateConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.engine import Engine
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.integrations.samplers import betas
from stepdrop_rl.metrics import distance_name, gather, over_blocks, paired_difference
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.solvers import make_solver

PIPELINE_STEPS = 20
PRECISIONS = ("float32", "bfloat16")


def measure_pipeline(config: BenchmarkConfig) -> list[Row]:
    """Images per second against diffusers' ``DDIMPipeline``: the same U-Net, steps and batch, in float32."""
    device = resolve_device(config.device)
    rows = []
    distances = _distances(config)
    for precision in PRECISIONS:
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
                "distance (bfloat16 − float32, 95 %)": distances[precision],
            }
        )
    return [*rows, _proportional(config)]


def _proportional(config: BenchmarkConfig) -> Row:
    """Speed-up from 50 evaluations an image to 5: wall time should follow the evaluations."""
    denoiser = load_model(config.model or config.data.name, resolve_device(config.device)).denoiser
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
        "what": f"5 evaluations against 50, {denoiser.autocast or torch.float32}".replace("torch.", ""),
        "images/s": config.batch_size / fast,
        "DDIMPipeline images/s": "–",
        "ratio": ratio,
        "distance (bfloat16 − float32, 95 %)": "–",
    }


def _distances(config: BenchmarkConfig) -> dict[str, str]:
    """What the judge says of images of the same noise in both number types, and of their difference."""
    blocks = {}
    for precision in PRECISIONS:
        choice = EvaluateConfig(
            policy="uniform",
            solver="ddim",
            target_nfe=PIPELINE_STEPS,
            data=config.data,
            model=config.model,
            device=config.device,
            batch_size=config.batch_size,
            num_samples=config.num_samples,
            precision=precision,  # type: ignore[arg-type]
        )
        arena, contender = make_arena(choice, blocks=choice.blocks)
        images = arena.draw(contender, config.num_samples).images
        found = over_blocks(*gather(images, arena.extractor), arena.reference, arena.blocks)
        blocks[precision] = found[distance_name(arena.extractor.name)]
    wide, narrow = (blocks[precision] for precision in PRECISIONS)
    d = paired_difference(narrow.values, wide.values)
    return {
        "float32": f"{wide.mean:.2f}",
        "bfloat16": f"{narrow.mean:.2f} ({d.mean:+.2f} ± {d.half_width:.2f})",
    }
