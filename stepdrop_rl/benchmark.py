"""``python -m stepdrop_rl.benchmark``: the numbers of the README, as ratios measured in one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    """Measure the parts asked for and print one table each."""
    from dataclasses import asdict

    from stepdrop_rl.benchmarks import PARTS
    from stepdrop_rl.benchmarks.speed import check_contenders
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.report.tables import print_table
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    # Said now, before a run is begun.
    for name in config.parts:
        PARTS[name]
    resolve_device(config.device)
    if "speed" in config.parts:
        check_contenders(config)
    results: dict[str, list[dict[str, Any]]] = {}
    with start_run(f"benchmark-{config.data.name}", mode=config.tracking, config=asdict(config)) as tracker:
        for name in config.parts:
            rows = results[name] = PARTS.load(name)(config)
            cells = [[_text(value) for value in row.values()] for row in rows]
            print_table(list(rows[0]), cells, f"\n{name}")
            numbers = {f"{name}/{row['what']}": float(row["ratio"]) for row in rows if "ratio" in row}
            tracker.log_metrics(numbers)
        tracker.log_dict(results, "benchmark.json")
    if config.json is not None:
        write_json(config.json, results)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(BenchmarkConfig, run, "benchmark", argv)


if __name__ == "__main__":
    sys.exit(main())
