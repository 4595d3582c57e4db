"""What contenders are worth: judged, and written down as result records.

Shapes: M = images drawn.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepdrop_rl.arena import Arena, Contender
from stepdrop_rl.data import to_float
from stepdrop_rl.engine import Samples
from stepdrop_rl.metrics import BlockMean, gather, over_blocks
from stepdrop_rl.metrics.compute import gflops_per_call, latency, peak_memory_mb
from stepdrop_rl.metrics.similarity import similarity

KEPT = 1024  # images of a contender that are kept once it is judged
_LATENCY_REPEATS = 9
RESULT_SCHEMA = "stepdrop_rl.result/1"


@dataclass(frozen=True)
class Outcome:
    """What a contender was worth.

    Args:
        contender: Who.
        samples: What it drew (of the images only the first ones).
        estimates: Metric → mean over the blocks, standard error, block values.
        to_teacher: How like the full trajectory of the same noise: mse, psnr, ssim, perceptual; empty where
            that was not drawn.
        latency_ms: Median wall time of one image drawn alone.
        gflops: Of the network, per image.
    """

    contender: Contender
    samples: Samples
    estimates: dict[str, BlockMean]
    to_teacher: dict[str, float]
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
            "num_samples": len(self.samples.nfe),
            "nfe_mean": self.nfe_mean,
            "nfe_std": self.nfe_std,
            "price": self.contender.price,
        }
        for metric, estimate in self.estimates.items():
            record[metric] = estimate.mean
            record[f"{metric}_error"] = estimate.standard_error
            record[f"{metric}_blocks"] = list(estimate.values)
        record |= {f"teacher_{name}": value for name, value in self.to_teacher.items()}
        return record | {
            "is_std": statistics.stdev(self.estimates["is_mean"].values),
            "images_per_second": self.samples.images_per_second,
            "latency_ms_p50": self.latency_ms,
            "gflops_per_image": self.gflops,
        }


def judged(arena: Arena, contender: Contender, samples: Samples, teacher: Tensor | None) -> Outcome:
    """Judge what a contender drew; with several processes: all that they drew together.

    Args:
        arena: Where.
        contender: Who.
        samples: This process's share, as files would hold it.
        teacher: The full trajectory of the same noise, likewise, or None.
    """
    world = arena.world
    features, logits = (world.gathered(part) for part in gather(samples.images, arena.extractor))
    like = {} if teacher is None else similarity(samples.images, teacher, arena.extractor)
    shares = world.gathered(torch.tensor([[len(samples.images), *like.values()]], dtype=torch.float64))
    means = (shares[:, 1:] * shares[:, :1]).sum(0) / shares[:, 0].sum()
    seconds = world.gathered(torch.tensor([samples.seconds], dtype=torch.float64))
    whole = replace(
        samples,
        images=to_float(samples.images[:KEPT]),
        nfe=world.gathered(samples.nfe),
        evaluated=world.gathered(samples.evaluated),
        seconds=float(seconds.max()),
    )
    call = gflops_per_call(
        arena.model.denoiser.network,
        torch.zeros(1, *arena.model.denoiser.shape, device=arena.times.device),
        torch.zeros(1, device=arena.times.device),
    )
    return Outcome(
        contender,
        whole,
        over_blocks(features, logits, arena.reference, arena.blocks),
        dict(zip(like, means.tolist(), strict=True)),
        _latency(arena, contender),
        call * float(whole.nfe.double().mean()),
    )


def _latency(arena: Arena, contender: Contender) -> float:
    engine = arena.engine(contender.agent)
    images = itertools.count()  # a policy does not spend the same on every image

    def draw_one() -> Samples:
        return engine.sample(contender.agent, 1, price=contender.price, first_image=next(images))

    return latency(draw_one, device=arena.times.device, repeats=_LATENCY_REPEATS, warmup=1).p50


def records(
    outcomes: Sequence[Outcome], arena: Arena, *, git_commit: str, run_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Result records, the requested policy first."""
    shared = {
        "solver": arena.solver,
        "clip": arena.clip,
        "dataset": arena.model.info.dataset,
        "model_hash": arena.model.hash,
        "seed": arena.seed,
        "blocks": arena.blocks,
        "extractor": arena.extractor.name,
        "extractor_hash": arena.extractor.content_hash,
        "peak_memory_mb": peak_memory_mb(arena.times.device),
        "device": device_name(arena.times.device),
        "number_type": "float32" if arena.model.denoiser.autocast is None else "bfloat16",
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
