"""``python -m stepdrop_rl.benchmark``: the numbers of the README, as ratios measured in one run."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import BenchmarkConfig

if TYPE_CHECKING:
    import torch

    from stepdrop_rl.comparison import Outcome

Row = dict[str, Any]

ENVIRONMENT_STEPS = 6
ENGINE_EVALUATIONS = 10
ENGINE_BATCHES = 20  # of images that a policy draws: the last ones leave slots empty
PIPELINE_STEPS = 20


def run(config: BenchmarkConfig) -> None:
    """Measure the parts asked for and print one table each."""
    from dataclasses import asdict

    from envs.registry import unknown_name
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.report.tables import print_table
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    parts: dict[str, Callable[[BenchmarkConfig], list[Row]]] = {
        "environment": measure_environment,
        "engine": measure_engine,
        "pipeline": measure_pipeline,
        "training": measure_training,
        "policy": measure_policy,
    }
    for name in config.parts:
        if name not in parts:
            raise unknown_name("part", name, parts)
    resolve_device(config.device)  # said now, not after the first part
    results: dict[str, list[Row]] = {}
    with start_run(f"benchmark-{config.data.name}", mode=config.tracking, config=asdict(config)) as tracker:
        for name in config.parts:
            rows = results[name] = parts[name](config)
            print_table(
                list(rows[0]), [[_text(value) for value in row.values()] for row in rows], f"\n{name}"
            )
            numbers = {f"{name}/{row['what']}": float(row["ratio"]) for row in rows if "ratio" in row}
            tracker.log_metrics(numbers)
        tracker.log_dict(results, "benchmark.json")
    if config.json is not None:
        write_json(config.json, results)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interleaved(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of their ratios pair by pair: drift hits both alike."""
    first(), second()  # warm
    pairs = []
    for _ in range(repeats):
        seconds = []
        for call in (first, second):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        pairs.append(seconds)
    a, b = zip(*pairs, strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in pairs)


def measure_environment(config: BenchmarkConfig) -> list[Row]:
    """Decisions per second: the vector environment against as many single ones in a ``SyncVectorEnv``."""
    import gymnasium
    import numpy as np

    from stepdrop_rl import ENVIRONMENT_ID
    from stepdrop_rl.environment import make_vector

    model = config.model or config.data.name
    batched = make_vector(config.num_envs, model=model)
    single = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(ENVIRONMENT_ID, model=model, disable_env_checker=True)] * config.num_envs
    )
    generator = np.random.default_rng(config.seed)
    actions = generator.integers(0, 2, (ENVIRONMENT_STEPS, config.num_envs))

    def walk(environment: Any) -> None:
        for row in actions:
            environment.step(row)

    batched.reset(seed=config.seed)
    single.reset(seed=config.seed)
    repeats = max(2, min(3, config.repeats))  # an episode must not end in between: it would hide the steps
    fast, slow, ratio = interleaved(lambda: walk(batched), lambda: walk(single), repeats)
    decisions = ENVIRONMENT_STEPS * config.num_envs
    return [
        {
            "what": f"{config.num_envs} trajectories, batched against single",
            "batched decisions/s": decisions / fast,
            "single decisions/s": decisions / slow,
            "ratio": 1 / ratio,
        }
    ]


def measure_engine(config: BenchmarkConfig) -> list[Row]:
    """Wall time of fixed schedules and of a policy against bare network calls of the same batch size."""
    import torch

    from agents.base import Budget
    from agents.fixed import quadratic
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.engine import Engine
    from stepdrop_rl.models.unet import load_model
    from stepdrop_rl.solvers import SOLVERS

    device = resolve_device(config.device)
    model = load_model(config.model or config.data.name, device)
    agent = quadratic(Budget(ENGINE_EVALUATIONS, model.info.t_start, model.info.t_end, ENGINE_EVALUATIONS))
    assert agent.times is not None
    x = torch.randn(config.batch_size, *model.denoiser.shape, device=device)
    rows = []
    for name in SOLVERS:
        engine = Engine(
            denoiser=model.denoiser,
            solver=SOLVERS.load(name)(),
            times=agent.times,
            seed=config.seed,
            batch_size=config.batch_size,
        )

        def sample(engine: Engine = engine) -> None:
            engine.sample(agent, config.batch_size)

        @torch.no_grad()
        def bare() -> None:
            for t in agent.times.tolist():  # type: ignore[union-attr]
                model.denoiser.network(x, torch.full((len(x),), t, device=device)).sample.cpu()

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
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.config import EvaluateConfig

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


def measure_pipeline(config: BenchmarkConfig) -> list[Row]:
    """Images per second against diffusers' ``DDIMPipeline``: the same U-Net, steps, batch and number type."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    from agents.fixed import FixedSchedule
    from envs.errors import UserError
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.engine import Engine
    from stepdrop_rl.integrations.samplers import betas
    from stepdrop_rl.models.unet import load_model
    from stepdrop_rl.solvers import SOLVERS

    device = resolve_device(config.device)
    rows = []
    for precision in ("float32", "bfloat16"):
        model = load_model(config.model or config.data.name, device, precision=precision)
        network = model.denoiser.network
        if not isinstance(network, UNet2DModel) or model.info.prediction != "epsilon":
            raise UserError("the pipeline's comparison needs a plain UNet2DModel that predicts epsilon")
        scheduler = DDIMScheduler(trained_betas=betas(model.denoiser.schedule.alpha_bar), clip_sample=True)
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
            solver=SOLVERS.load("ddim")(),
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
    import torch

    from agents.fixed import FixedSchedule
    from stepdrop_rl.engine import Engine
    from stepdrop_rl.grid_ends import default_ends
    from stepdrop_rl.solvers import SOLVERS

    ends = default_ends(denoiser.schedule)
    many, few = (torch.linspace(*ends, count, dtype=torch.float64) for count in (50, 5))
    engine = Engine(
        denoiser=denoiser,
        solver=SOLVERS.load("ddim")(),
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


def measure_training(config: BenchmarkConfig) -> list[Row]:
    """Images per second of training steps against bare forward and backward passes; the matrix ceiling."""
    import torch

    from stepdrop_rl.cli import parse
    from stepdrop_rl.config import TrainDiffusionConfig
    from stepdrop_rl.data import load
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.diffusion import NoiseSchedule
    from stepdrop_rl.diffusion_training import Trainer
    from stepdrop_rl.metrics.compute import gflops_per_call
    from stepdrop_rl.models.unet import make_network

    files = ["--config", config.training] if config.training is not None else []
    settings = parse(TrainDiffusionConfig, "train_diffusion", [*files, f"--data.name={config.data.name}"])
    device = resolve_device(config.device)
    data = load(settings.data, "train")
    schedule = NoiseSchedule(settings.schedule.name, settings.schedule.num_train_timesteps, device)
    trainer = Trainer(settings, make_network(settings.unet, data.shape).to(device), data.images, schedule)
    x = torch.randn(settings.batch_size, *data.shape, device=device)
    t = torch.rand(len(x), device=device) * (settings.schedule.num_train_timesteps - 1)
    dtype = trainer.autocast or torch.float32

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def step() -> None:
        trainer.train_step()
        finish()

    def bare() -> None:
        trainer.network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=trainer.autocast is not None):
            output = trainer.forward(x, t)
        output.float().square().mean().backward()
        finish()

    ours, network, ratio = interleaved(step, bare, config.repeats)
    with torch.enable_grad():
        flops = 3e9 * gflops_per_call(trainer.network, x[:1], t[:1]) * len(x)  # backward is two forwards
    return [
        {
            "what": f"{config.data.name}, batch {len(x)}, {dtype}".replace("torch.", ""),
            "images/s": len(x) / ours,
            "bare images/s": len(x) / network,
            "ratio": 1 / ratio,
            "TFLOP/s": flops / ours / 1e12,
            "matrix ceiling": _matrix_ceiling(device, dtype) / 1e12,
        }
    ]


def _matrix_ceiling(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a large square matrix product, the best of a few."""
    import torch

    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def measure_policy(config: BenchmarkConfig) -> list[Row]:
    """PPO with the defaults, over training seeds, against the best simple schedule at the same mean NFE."""
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.config import EvaluateConfig, TrainPolicyConfig
    from stepdrop_rl.evaluate import compare
    from stepdrop_rl.metrics import distance_name
    from stepdrop_rl.runs import run_folder
    from stepdrop_rl.train_policy import STATE
    from stepdrop_rl.train_policy import run as train

    learned: list[Outcome] = []
    others: dict[str, Outcome] = {}
    minutes = []
    for seed in range(config.training_seeds):
        folder = run_folder(config.data.name, f"benchmark-ppo-{seed}")
        began = time.monotonic()
        resume = (folder / f"{STATE}.json").is_file()
        train(
            TrainPolicyConfig(
                seed=seed,
                data=config.data,
                model=config.model,
                device=config.device,
                tracking=config.tracking,
                output=str(folder),
                resume=resume,
            )
        )
        if not resume:
            minutes.append((time.monotonic() - began) / 60)
        choice = EvaluateConfig(
            policy=str(folder),
            data=config.data,
            model=config.model,
            device=config.device,
            seed=config.seed,
            target_nfe=config.target_nfe,
            num_samples=config.num_samples,
            baselines=[] if others else ["uniform", "quadratic", "log_snr"],
        )
        arena, contender = make_arena(choice, blocks=choice.blocks)
        outcomes = compare(choice, arena, contender)
        learned.append(outcomes[0])
        others |= {outcome.name: outcome for outcome in outcomes[1:] if outcome.name not in others}
    distance = distance_name(arena.extractor.name)
    rows = [_policy_row(f"ppo, seed {seed}", [outcome], distance) for seed, outcome in enumerate(learned)]
    if len(learned) > 1:
        rows.append(_policy_row(f"ppo, {len(learned)} seeds", learned, distance))
    rows += [_policy_row(name, [outcome], distance) for name, outcome in others.items()]
    best = min(
        (outcome.estimates[distance].mean for name, outcome in others.items() if name != "full"),
        default=float("nan"),
    )
    for row in rows:
        row["ratio"] = row[distance] / best
    if minutes:
        print(f"training: {', '.join(f'{m:.1f}' for m in minutes)} minutes", file=sys.stderr)
    return rows


def _policy_row(what: str, outcomes: Sequence[Outcome], distance: str) -> Row:
    from stepdrop_rl.metrics import block_mean

    def over(values: Sequence[float]) -> tuple[float, str]:
        if len(values) == 1:
            return values[0], "–"
        estimate = block_mean(values)
        return estimate.mean, f"± {estimate.half_width:.3g}"

    fd, interval = over([o.estimates[distance].mean for o in outcomes])
    return {
        "what": what,
        "NFE": over([o.nfe_mean for o in outcomes])[0],
        distance: fd,
        "95 % over seeds": interval,
        "KID": over([o.estimates["kid"].mean for o in outcomes])[0],
        "precision": over([o.estimates["precision"].mean for o in outcomes])[0],
        "recall": over([o.estimates["recall"].mean for o in outcomes])[0],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(BenchmarkConfig, run, "benchmark", argv)


if __name__ == "__main__":
    sys.exit(main())
