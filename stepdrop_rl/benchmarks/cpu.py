"""What a CPU is best used with: how many threads, and which number type."""

from __future__ import annotations

import torch

from envs.errors import UserError
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.threads import keep_threads

PRECISIONS = ("float32", "bfloat16")


def measure_cpu(config: BenchmarkConfig) -> list[Row]:
    """Evaluations per second by threads and number type, and the ratio to torch's own choice in float32.

    The best number of threads is kept for later runs (:mod:`stepdrop_rl.threads`).

    Raises:
        UserError: The device is not a CPU.
    """
    device = resolve_device(config.device)
    if device.type != "cpu":
        raise UserError(f"the cpu part measures a CPU, not {device}: give --device cpu")
    chosen = torch.get_num_threads()
    name = config.model or config.data.name
    model = load_model(name)
    denoisers = {precision: load_model(name, precision=precision).denoiser for precision in PRECISIONS}
    torch.set_num_threads(chosen)  # whatever was kept of an earlier measurement
    usual_type = "float32" if model.denoiser.autocast is None else "bfloat16"
    best = (0.0, chosen)
    shape = denoisers["float32"].shape
    x, t = torch.randn(config.batch_size, *shape), torch.linspace(0, 900, config.batch_size)

    @torch.no_grad()
    def call(precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            denoisers[precision](x, t)
        finally:
            torch.set_num_threads(chosen)

    rows = []
    for threads in _counts(chosen):
        for precision in PRECISIONS:
            seconds, usual, ratio = interleaved(
                lambda p=precision, k=threads: call(p, k),  # type: ignore[misc]
                lambda: call("float32", chosen),
                config.repeats,
            )
            if precision == usual_type:
                best = max(best, (1 / ratio, threads))
            rows.append(
                {
                    "what": f"{precision}, {threads} thread{'s' if threads > 1 else ''}",
                    "evaluations/s": config.batch_size / seconds,
                    f"float32, {chosen} threads, evaluations/s": config.batch_size / usual,
                    "ratio": 1 / ratio,
                }
            )
    keep_threads(model.hash, best[1])
    return rows


def _counts(chosen: int) -> list[int]:
    """1, 2, 4 … and torch's own choice."""
    counts = {1 << k for k in range(chosen.bit_length())}
    return sorted({count for count in counts if count <= chosen} | {chosen})
