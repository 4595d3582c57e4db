"""What compiling the network's calls brings on a CPU."""

from __future__ import annotations

import time

import torch

from envs.errors import UserError
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.models.compiled import FEWEST, Compiled
from stepdrop_rl.models.denoiser import FEATURES
from stepdrop_rl.models.unet import load_model


@torch.no_grad()
def measure_compiled(config: BenchmarkConfig) -> list[Row]:
    """Evaluations per second of compiled calls and of others, without features and with all of them.

    Raises:
        UserError: The device is not a CPU, batches are too small, or compilation failed.
    """
    device = resolve_device(config.device)
    if device.type != "cpu":
        raise UserError(f"the compiled part measures a CPU, not {device}: give --device cpu")
    if config.batch_size < FEWEST:
        raise UserError(f"calls of fewer than {FEWEST} images are never compiled: give a larger batch_size")
    name = config.model or config.data.name
    plain, compiled = load_model(name).denoiser, load_model(name, compiled=True).denoiser
    x, t = torch.randn(config.batch_size, *plain.shape), torch.linspace(0, 900, config.batch_size)
    rows = []
    for features in ((), FEATURES):
        began = time.perf_counter()
        said, _ = compiled(x, t, features=features)
        first = time.perf_counter() - began
        if not Compiled.works:
            raise UserError("compilation failed: there is nothing to measure")
        mine, other, ratio = interleaved(
            lambda f=features: compiled(x, t, features=f),  # type: ignore[misc]
            lambda f=features: plain(x, t, features=f),  # type: ignore[misc]
            config.repeats,
        )
        shown = " and ".join(features) or "none"
        rows.append(
            {
                "what": f"{plain.numbers}, batch {config.batch_size}, features: {shown}",
                "compiled, evaluations/s": config.batch_size / mine,
                "not compiled": config.batch_size / other,
                "ratio": 1 / ratio,
                "first call, seconds": first,
                "largest difference": float((said - plain(x, t)[0]).abs().max()),
            }
        )
    return rows
