"""``python -m stepdrop_rl.train_diffusion``: train a tiny diffusion model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stepdrop_rl.cli import command
from stepdrop_rl.config import TrainDiffusionConfig

if TYPE_CHECKING:
    import torch

    from stepdrop_rl.diffusion_training import Trainer
    from stepdrop_rl.models.unet import ModelInfo
    from stepdrop_rl.parallel import World
    from stepdrop_rl.tracking import Run

LOG_EVERY = 50
STOP_EVERY = 10  # steps between two questions whether a process was asked to stop
GRID_IMAGES = 64
GRID_EVALUATIONS = 25
QUALITY_IMAGES = 512


def run(config: TrainDiffusionConfig) -> None:
    """Train until the declared steps, an interruption or the time limit; leave a checkpoint and a model.

    Under ``accelerate launch`` or ``torchrun`` the processes share every batch; the first speaks and writes.
    """
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.parallel import device_of, join

    device = resolve_device(config.device)
    world = join(device)
    try:
        _run(config, device_of(device, world.local_rank), world)
    finally:
        world.leave()


def _run(config: TrainDiffusionConfig, device: torch.device, world: World) -> None:
    import copy

    import torch

    from stepdrop_rl.data import load
    from stepdrop_rl.diffusion import NoiseSchedule
    from stepdrop_rl.diffusion_training import CHECKPOINT, Trainer
    from stepdrop_rl.grid_ends import default_ends
    from stepdrop_rl.losses import LOSSES
    from stepdrop_rl.metrics import find_extractor
    from stepdrop_rl.models.unet import ModelInfo, make_network, save_model
    from stepdrop_rl.runs import prepare_output, run_folder
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    LOSSES[config.loss.name]
    data = load(config.data, "train")
    if config.choose_ends:
        find_extractor(config.ends_judge, config.data.name)  # before hours of training, not after them
    schedule = NoiseSchedule(config.schedule.name, config.schedule.num_train_timesteps, device)
    torch.manual_seed(config.seed)  # the network's first weights
    network = make_network(config.unet, data.shape).to(device)
    trainer = Trainer(config, network, data.images, schedule, world)
    # Only now: an earlier run is not moved aside for settings that cannot work.
    default = run_folder(config.data.name, "diffusion")
    if world.is_main:
        folder = prepare_output(config.output, default, marker=f"{CHECKPOINT}.json", resume=config.resume)
    else:
        folder = Path(config.output) if config.output is not None else default
    world.wait()
    if config.resume:
        trainer.resume(folder)
    t_start, t_end = default_ends(schedule)
    info = ModelInfo(
        dataset=config.data.name,
        prediction=config.prediction,
        schedule=config.schedule,
        t_start=t_start,
        t_end=t_end,
    )
    mode = config.tracking if world.is_main else "none"
    with start_run(f"diffusion-{config.data.name}", mode=mode, config=asdict(config)) as tracker:
        reason = _train(config, trainer, info, folder, tracker)
        if not world.is_main:
            return
        trainer.save(folder)
        if reason is None and config.choose_ends:
            info = _with_chosen_ends(config, trainer, info, tracker)
        written = copy.deepcopy(trainer.ema).to(getattr(torch, config.weights))
        save_model(folder / "unet", written, info)
        tracker.log_artifact(folder / "unet" / "stepdrop.json")
        where = tracker.where()
    if config.json is not None:
        record = {"folder": str(folder), "step": trainer.step, "stopped_by": reason, "model": asdict(info)}
        write_json(config.json, record)
    state = "complete" if reason is None else f"stopped by {reason}; --resume goes on"
    print(f"{folder}: {trainer.step} of {config.steps} steps ({state}); model in {folder / 'unet'}")
    if where:
        print(where)


def _train(
    config: TrainDiffusionConfig, trainer: Trainer, info: ModelInfo, folder: Path, tracker: Run
) -> str | None:
    """The loop; returns why it stopped early, or None."""
    import time

    from stepdrop_rl.interrupt import StopRequest
    from stepdrop_rl.report.progress import progress_bar

    main = trainer.world.is_main
    with StopRequest(config.max_minutes) as stop, progress_bar(visible=main) as bar:
        task = bar.add_task("training", total=config.steps, completed=trainer.step, note="")
        began, first = time.monotonic(), trainer.step
        losses = []
        while trainer.step < config.steps:
            # Together, or the others would wait for ever.
            if (trainer.world.size == 1 or trainer.step % STOP_EVERY == 0) and trainer.world.any(bool(stop)):
                break
            values = trainer.train_step()
            losses.append(values["loss"])
            if trainer.step % LOG_EVERY == 0 or trainer.step == config.steps:
                loss = float(sum(losses)) / len(losses)
                speed = (trainer.step - first) * config.batch_size / (time.monotonic() - began)
                losses.clear()
                metrics = {name: float(value) for name, value in values.items()}
                tracker.log_metrics(metrics | {"loss": loss, "images_per_second": speed}, trainer.step)
                bar.update(task, completed=trainer.step, note=f"loss {loss:.4f}  {speed:.0f} images/s")
            if main and trainer.step % config.checkpoint_every == 0:
                trainer.save(folder)
            if main and trainer.step % config.sample_every == 0:
                _look(config, trainer, info, tracker)
    if trainer.step >= config.steps:
        return None
    return stop.reason or "another process"


def _look(config: TrainDiffusionConfig, trainer: Trainer, info: ModelInfo, tracker: Run) -> None:
    """Log a grid of samples and, where there is a validation judge, their distance."""
    import torch

    from agents.fixed import FixedSchedule
    from envs.errors import UserError
    from envs.philox import Role
    from stepdrop_rl.engine import Engine
    from stepdrop_rl.metrics import distance_name, gather, load_reference
    from stepdrop_rl.metrics.distances import frechet_distance
    from stepdrop_rl.report.images import image_grid
    from stepdrop_rl.solvers import make_solver

    try:
        judge = load_reference(config.data, "validation", trainer.schedule.device)
    except UserError:  # none was trained: the grid alone is worth looking at
        judge = None
    times = torch.linspace(info.t_start, info.t_end, GRID_EVALUATIONS, dtype=torch.float64)
    engine = Engine(
        denoiser=trainer.denoiser,
        solver=make_solver("multistep"),
        times=times,
        seed=config.seed,
        role=Role.VALIDATION,
    )
    count = GRID_IMAGES if judge is None else QUALITY_IMAGES
    images = engine.sample(FixedSchedule("grid", times), count).images
    tracker.log_image(image_grid(images[:GRID_IMAGES]), key="samples", step=trainer.step)
    if judge is not None:
        extractor, reference = judge
        distance = frechet_distance(gather(images, extractor)[0], reference.statistics)
        tracker.log_metrics({distance_name(extractor.name): distance}, trainer.step)


def _with_chosen_ends(
    config: TrainDiffusionConfig, trainer: Trainer, info: ModelInfo, tracker: Run
) -> ModelInfo:
    """Judge full trajectories between candidate ends by the validation extractor, on validation noise."""
    from stepdrop_rl.grid_ends import Ends, choose_ends
    from stepdrop_rl.metrics import gather, load_reference
    from stepdrop_rl.metrics.distances import frechet_distance
    from stepdrop_rl.metrics.pairs import kid

    extractor, reference = load_reference(config.data, config.ends_judge, trainer.schedule.device)
    tried: list[Ends] = []

    def told(ends: Ends) -> None:
        tried.append(ends)
        print(f"  t {ends.t_start:6.1f} → {ends.t_end:5.1f}: distance {ends.distance:.4f}", file=sys.stderr)

    def distance(images: torch.Tensor) -> float:
        features = gather(images, extractor)[0]
        if config.ends_judge == "validation":
            return frechet_distance(features, reference.statistics)
        return kid(features, reference.cloud)

    best = choose_ends(
        trainer.denoiser,
        distance,
        seed=config.seed,
        num_images=config.ends_samples,
        progress=told,
    )
    tracker.log_dict(
        {"candidates": [asdict(ends) for ends in tried], "chosen": asdict(best)}, "grid_ends.json"
    )
    return replace(info, t_start=best.t_start, t_end=best.t_end)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(TrainDiffusionConfig, run, "train_diffusion", argv)


if __name__ == "__main__":
    sys.exit(main())
