"""``python -m stepdrop_rl.sampler_table``: all solvers and spacings at several budgets, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import SamplerTableConfig

Row = dict[str, Any]

TEACHER_SOLVER = "multistep"  # of the full trajectory
_UNSPENT = "Evaluations made, where a sampler cannot spend just the column's, stand in brackets."


def run(config: SamplerTableConfig) -> None:
    """Draw, judge, print a table of the best spacing of every solver, write all of it."""
    from dataclasses import asdict

    from agents import BASELINES
    from stepdrop_rl.arena import TEACHER_STEPS, make_arena
    from stepdrop_rl.config import AgentChoice
    from stepdrop_rl.integrations.samplers import SAMPLERS, draw
    from stepdrop_rl.metrics import distance_name, gather
    from stepdrop_rl.report.figures import sampler_curves
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.solvers import SOLVERS, make_solver
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json, write_text

    solvers = config.solvers or list(SOLVERS)
    for solver in solvers:
        make_solver(solver)
    for schedule in config.schedules:
        BASELINES[schedule]

    def arena_of(solver: str):  # type: ignore[no-untyped-def]
        choice = AgentChoice(
            policy="uniform",
            solver=solver,
            data=config.data,
            model=config.model,
            device=config.device,
            seed=config.seed,
            precision=config.precision,
        )
        return make_arena(choice, blocks=2, judge=config.metrics.judge)[0]

    arena = arena_of(solvers[0])
    distance = distance_name(arena.extractor.name)
    rows: list[Row] = []

    def judge(solver: str, schedule: str, nfe: float, images: Any) -> Row:
        scores = arena.scores(gather(images, arena.extractor)[0])
        return {"solver": solver, "schedule": schedule, "nfe": nfe, **scores}

    tags = {"command": "sampler_table"}
    with start_run(
        f"samplers-{config.data.name}", mode=config.tracking, config=asdict(config), tags=tags
    ) as run:
        rivals = list(SAMPLERS) if config.diffusers else []
        with progress_bar() as bar:
            total = (len(solvers) * len(config.schedules) + len(rivals)) * len(config.nfe)
            task = bar.add_task("samplers", total=total, note="")
            for solver in solvers:
                here = arena_of(solver)
                for schedule in config.schedules:
                    for nfe in config.nfe:
                        agent = here.contender(schedule, nfe).agent
                        images = here.engine(agent).sample(agent, config.num_samples).images
                        rows.append(judge(solver, schedule, nfe, images))
                        bar.advance(task)
                    _log(config, run, rows[-len(config.nfe) :], distance)
            for name in rivals:
                for nfe in config.nfe:
                    images, calls = draw(name, arena.model, nfe, config.num_samples, seed=config.seed)
                    rows.append(judge(name, "its own", calls, images) | {"budget": nfe})
                    bar.advance(task)
                _log(config, run, rows[-len(config.nfe) :], distance)
        teacher = arena_of(TEACHER_SOLVER)
        full = teacher.distance(teacher.full(config.num_samples))
        title = (
            f"{config.data.name}: {distance} of {config.num_samples:,} images, same noise; the full "
            f"trajectory's, {TEACHER_STEPS} by {TEACHER_SOLVER}, is {full:.2f}"
        )
        text = f"{title}. {_UNSPENT}\n\n" + report(rows, config, distance)
        run.log_dict({"rows": rows}, "samplers.json")
        figure = sampler_curves(rows, distance, title)
        run.log_figure(figure, "samplers.png")
        where = run.where()
    print(text)
    if config.report is not None:
        write_text(config.report, text)
    if config.figure is not None:
        figure.savefig(config.figure)
    if config.json is not None:
        write_json(config.json, {"rows": rows})
    if where:
        print(f"figure and runs: {where}")


def _log(config: SamplerTableConfig, parent: Any, rows: Sequence[Row], distance: str) -> None:
    """A child run per solver and schedule, its curve over the budgets."""
    from stepdrop_rl.tracking import start_run

    settings = {key: rows[0][key] for key in ("solver", "schedule")}
    name = f"{rows[0]['solver']}-{rows[0]['schedule']}"
    with start_run(name, mode=config.tracking, config=settings, parent=parent) as child:
        for row in rows:
            child.log_metrics({distance: row[distance], "kid": row["kid"]}, int(row["nfe"]))


def report(rows: Sequence[Row], config: SamplerTableConfig, distance: str) -> str:
    """Markdown: a line per solver and schedule, a column per budget, the best of each column in bold."""
    from stepdrop_rl.report.tables import markdown_table

    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["solver"], row["schedule"]), []).append(row)
    best = [min(one[i][distance] for one in lines.values()) for i in range(len(config.nfe))]
    table = []
    for (solver, schedule), found in lines.items():
        cells = [f"{row[distance]:.2f}" for row in found]
        cells = [
            f"**{cell}**" if row[distance] == b else cell
            for cell, row, b in zip(cells, found, best, strict=True)
        ]
        cells = [  # ours spend the column's, diffusers' what their steps take
            cell if row.get("budget", row["nfe"]) == row["nfe"] else f"{cell} ({row['nfe']})"
            for cell, row in zip(cells, found, strict=True)
        ]
        table.append([solver, schedule, *cells])
    return markdown_table(["solver", "schedule", *(f"{nfe} evaluations" for nfe in config.nfe)], table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(SamplerTableConfig, run, "sampler_table", argv)


if __name__ == "__main__":
    sys.exit(main())
