"""Training steps against bare forward and backward passes."""

from __future__ import annotations

import time

import torch

from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.cli import parse
from stepdrop_rl.config import BenchmarkConfig, TrainDiffusionConfig
from stepdrop_rl.data import load
from stepdrop_rl.device import resolve_device
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.diffusion_training import Trainer
from stepdrop_rl.metrics.compute import gflops_per_call
from stepdrop_rl.models.unet import make_network


def measure_training(config: BenchmarkConfig) -> list[Row]:
    """Images per second of training steps against bare forward and backward passes; the matrix ceiling."""
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
