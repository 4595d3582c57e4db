"""One model at several budgets with several solvers: the baseline table of a model card.

Each rung is drawn in a process of its own, so that its peak of memory is its own. It ends with this one.
With ``--json FILE`` every finished rung is written there at once, and one that FILE holds is not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stepdrop_rl.comparison import RESULT_SCHEMA, device_name, records
from stepdrop_rl.config import EvaluateConfig
from stepdrop_rl.metrics import distance_name
from stepdrop_rl.weights import read_json

Record = dict[str, Any]


def climb(config: EvaluateConfig) -> None:
    """Judge every rung of ``config.ladder``, print the table, write the records, log a child run each."""
    import torch

    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.interrupt import Workers
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.report.tables import ladder_rows, print_table
    from stepdrop_rl.solvers import make_solver
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    for solver in config.ladder:
        make_solver(solver)
    rungs = [(solver, count) for solver, counts in config.ladder.items() for count in counts]
    # What cannot be had is noticed here, not in another process.
    arena, _ = make_arena(_rung(config, *rungs[0]), blocks=config.blocks, judge=config.metrics.judge)
    distance = distance_name(arena.extractor.name)
    num_real = arena.reference.num_images
    settings = _settings(config, arena.model.hash)
    threads = torch.get_num_threads()
    known = _finished(config.json, settings, device_name(arena.times.device))
    found: list[Record] = []
    name = f"ladder-{config.data.name}"
    with start_run(
        name, mode=config.tracking, config=asdict(config), tags={"command": "evaluate"}
    ) as tracker:
        with progress_bar() as bar:
            task = bar.add_task("rungs", total=len(rungs), note="")
            for solver, count in rungs:
                bar.update(task, note=f"{solver}, {count} evaluations")
                record = known.get(f"{solver} {count}")
                if record is None:
                    with Workers() as pool:
                        record = pool.submit(judge_rung, _rung(config, solver, count), threads).result()
                numbers = {
                    key: float(value) for key, value in record.items() if isinstance(value, int | float)
                }
                child_config = {"solver": solver, "nfe": count, "num_samples": config.num_samples}
                with start_run(
                    f"{solver}-{count}", mode=config.tracking, config=child_config, parent=tracker
                ) as child:
                    child.log_metrics(numbers)
                    found.append(record | {"mlflow_run_id": child.id})
                known[f"{solver} {count}"] = found[-1]
                if config.json is not None:
                    everything = {
                        "schema": RESULT_SCHEMA,
                        "settings": settings,
                        "records": list(known.values()),
                    }
                    write_json(config.json, everything)
                bar.advance(task)
        tracker.log_dict({"schema": RESULT_SCHEMA, "records": found}, "result.json")
        where = tracker.where()
    header, rows = ladder_rows(found, distance)
    info = arena.model.info
    title = (
        f"{config.data.name}: {config.num_samples:,} images in {config.blocks} blocks (± standard error), "
        f"evenly spaced from t = {info.t_start:g} to {info.t_end:g}; {num_real:,} real images; "
        f"{found[0]['device']}"
    )
    print_table(header, rows, title)
    if config.json is not None:
        print(f"records: {config.json}")
    if where:
        print(f"runs: {where}")


def _settings(config: EvaluateConfig, model_hash: str) -> dict[str, Any]:
    """What decides the numbers of a rung, but the rung."""
    free = ("ladder", "json", "tracking", "device", "data")
    kept = {key: value for key, value in asdict(config).items() if key not in free}
    plain: dict[str, Any] = json.loads(
        json.dumps(kept | {"data": config.data.name, "model_hash": model_hash})
    )
    return plain


def _finished(path: str | None, settings: Mapping[str, Any], device: str) -> dict[str, Record]:
    """The rungs that an earlier run with these settings left in its file, by solver and count.

    Only those of the same device, with as many threads: a table has one column of images/s.
    """
    if path is None or not Path(path).exists():
        return {}
    held = read_json(path)
    if held.get("settings") != settings:
        return {}
    return {
        f"{record['solver']} {record['nfe_mean']:.0f}": record
        for record in held["records"]
        if record["device"] == device
    }


def _rung(config: EvaluateConfig, solver: str, count: int) -> EvaluateConfig:
    return replace(
        config,
        policy="uniform",
        solver=solver,
        target_nfe=float(count),
        price=None,
        num_decisions=max(count, 2),
        tracking="none",
        ladder={},
    )


def judge_rung(config: EvaluateConfig, threads: int) -> Record:
    """Draw and judge one rung with as many threads; its peak of memory is that of drawing."""
    import torch

    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.comparison import judged
    from stepdrop_rl.evaluate import git_commit
    from stepdrop_rl.metrics.compute import peak_memory_mb

    torch.set_num_threads(threads)
    arena, contender = make_arena(config, blocks=config.blocks, judge=config.metrics.judge)
    samples = arena.draw(contender, config.num_samples)
    peak = peak_memory_mb(arena.times.device)
    outcome = judged(arena, contender, samples, samples.images)
    (record,) = records([outcome], arena, git_commit=git_commit(), run_ids=[""])
    alone = {key: value for key, value in record.items() if not key.startswith("teacher_")}
    return alone | {"peak_memory_mb": peak}
