"""What PPO with its defaults learns, over training seeds, against fixed schedules."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from stepdrop_rl.arena import make_arena
from stepdrop_rl.benchmarks.timing import Row
from stepdrop_rl.comparison import Outcome
from stepdrop_rl.config import BenchmarkConfig, EvaluateConfig, TrainPolicyConfig
from stepdrop_rl.evaluate import compare
from stepdrop_rl.metrics import block_mean, distance_name
from stepdrop_rl.policy_training import STATE
from stepdrop_rl.runs import run_folder
from stepdrop_rl.train_policy import run as train


def measure_policy(config: BenchmarkConfig) -> list[Row]:
    """PPO with the defaults, over training seeds, against the best simple schedule at the same mean NFE."""
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
