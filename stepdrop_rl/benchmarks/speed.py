"""Wall-clock at equal quality: a policy against schedules, each drawn by its own solver, in one run."""

from __future__ import annotations

import statistics

from envs.errors import UserError
from stepdrop_rl.arena import Arena, Contender, make_arena
from stepdrop_rl.benchmarks.timing import Row
from stepdrop_rl.config import BenchmarkConfig, EvaluateConfig
from stepdrop_rl.metrics import distance_name, gather, over_blocks
from stepdrop_rl.policies import check_name, given

_BATCHES = 4  # of images in a timing


def check_contenders(config: BenchmarkConfig) -> None:
    """Say what is wrong with them before anything is measured.

    Raises:
        UserError: There are fewer than two, or there is no such policy, file or list.
    """
    if len(config.contenders) < 2:
        raise UserError("the part 'speed' compares: give it contenders, two or more (folders, files, lists)")
    for name in config.contenders:
        check_name(name)


def measure_speed(config: BenchmarkConfig) -> list[Row]:
    """Distance and images/s of the first contender, at the budget, and of the others, at their own.

    Timings take turns, all contenders in every round; a ratio is the median over rounds. A contender that
    is as near to the real images and slower has been beaten by it.
    """
    met: list[tuple[Arena, Contender]] = []
    for name in config.contenders:
        choice = EvaluateConfig(
            policy=name,
            data=config.data,
            model=config.model,
            device=config.device,
            seed=config.seed,
            target_nfe=None if met or given(name) is not None else config.target_nfe,
            num_samples=config.num_samples,
            batch_size=config.batch_size,
        )
        met.append(make_arena(choice, blocks=choice.blocks))
    seconds: list[list[float]] = [[] for _ in met]
    for _ in range(config.repeats):
        for (arena, contender), taken in zip(met, seconds, strict=True):
            taken.append(arena.draw(contender, _BATCHES * config.batch_size).seconds)
    rows: list[Row] = []
    for name, (arena, contender), taken in zip(config.contenders, met, seconds, strict=True):
        samples = arena.draw(contender, config.num_samples)
        features, logits = gather(samples.images, arena.extractor)
        judged = over_blocks(features, logits, arena.reference, arena.blocks)
        row = {"what": name, "solver": arena.solver, "NFE": float(samples.nfe.double().mean())}
        for metric in (distance_name(arena.extractor.name), "kid", "precision"):
            row |= {metric: judged[metric].mean, f"± {metric}": judged[metric].half_width}
        row["images/s"] = _BATCHES * config.batch_size / statistics.median(taken)
        row["ratio"] = statistics.median(
            theirs / mine for mine, theirs in zip(seconds[0], taken, strict=True)
        )
        rows.append(row)
    return rows
