"""``python -m stepdrop_rl.sampler_table``: all solvers and spacings at several budgets, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stepdrop_rl.cli import command
from stepdrop_rl.config import SamplerTableConfig

if TYPE_CHECKING:
    from stepdrop_rl.arena import Arena

Row = dict[str, Any]

TEACHER_SOLVER = "multistep"  # of the full trajectory
_UNSPENT = "Evaluations made, where they are not the column's, stand in brackets."
_NEAR = 0.05  # evaluations by which chance may miss its budget unsaid


class Line(NamedTuple):
    """A line of the table, and the budgets at which it is drawn."""

    solver: str
    schedule: str
    budgets: list[int]


def run(config: SamplerTableConfig) -> None:
    """Draw, judge, print a table of the best spacing of every solver, write all of it."""
    from dataclasses import asdict

    from stepdrop_rl.arena import TEACHER_STEPS, make_arena
    from stepdrop_rl.config import AgentChoice
    from stepdrop_rl.integrations.samplers import SAMPLERS, draw
    from stepdrop_rl.metrics import distance_name, gather
    from stepdrop_rl.policies import check_name
    from stepdrop_rl.report.figures import sampler_curves
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.solvers import SOLVERS, make_solver
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json, write_text

    solvers = config.solvers or list(SOLVERS)
    for solver in solvers:
        make_solver(solver)
    for schedule in config.schedules:
        check_name(schedule)

    def arena_of(solver: str):  # type: ignore[no-untyped-def]
        choice = AgentChoice(
            policy="uniform",
            solver=solver,
            data=config.data,
            model=config.model,
            device=config.device,
            seed=config.seed,
            clip=config.clip,
            precision=config.precision,
            compile=config.compile,
        )
        return make_arena(choice, blocks=2, judge=config.metrics.judge)[0]

    arena = arena_of(solvers[0])
    distance = distance_name(arena.extractor.name)
    lines = table_lines(config, arena, solvers)
    rows: list[Row] = []

    def judge(solver: str, schedule: str, budget: int, nfe: float, images: Any) -> Row:
        scores = arena.scores(gather(images, arena.extractor)[0])
        return {"solver": solver, "schedule": schedule, "budget": budget, "nfe": nfe, **scores}

    tags = {"command": "sampler_table"}
    with start_run(
        f"samplers-{config.data.name}", mode=config.tracking, config=asdict(config), tags=tags
    ) as run:
        rivals = list(SAMPLERS) if config.diffusers else []
        with progress_bar() as bar:
            total = sum(len(line.budgets) for line in lines) + len(rivals) * len(config.nfe)
            task = bar.add_task("samplers", total=total, note="")
            here = arena
            for line in lines:
                if here.solver != line.solver:
                    here = arena_of(line.solver)
                for nfe in line.budgets:
                    agent = here.contender(line.schedule, nfe).agent
                    drawn = here.engine(agent).sample(agent, config.num_samples)
                    spent = float(drawn.nfe.double().mean())
                    rows.append(judge(line.solver, line.schedule, nfe, spent, drawn.images))
                    bar.advance(task)
                _log(config, run, rows[-len(line.budgets) :], distance)
            for name in rivals:
                for nfe in config.nfe:
                    images, calls = draw(name, arena.model, nfe, config.num_samples, seed=config.seed)
                    rows.append(judge(name, "its own", nfe, calls, images))
                    bar.advance(task)
                _log(config, run, rows[-len(config.nfe) :], distance)
        teacher = arena_of(TEACHER_SOLVER)
        full = teacher.distance(teacher.full(config.num_samples))
        title = (
            f"{config.data.name}: {distance} of {config.num_samples:,} images, same noise; the full "
            f"trajectory's, {TEACHER_STEPS} by {TEACHER_SOLVER}, is {full:.2f}"
        )
        text = f"{title}. {_UNSPENT}\n\n{report(rows, config, distance)}\nKID of the same images:\n\n"
        text += report(rows, config, "kid")
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


def table_lines(config: SamplerTableConfig, arena: Arena, solvers: Sequence[str]) -> list[Line]:
    """What is to be drawn: a spacing at every budget, a file or a list of times at its own with its solver.

    Raises:
        UserError: A schedule has no place in this table.
    """
    from agents import BASELINES
    from agents.fixed import whole
    from envs.errors import UserError
    from stepdrop_rl.arena import budget_of, check_nfe
    from stepdrop_rl.policies import given, make_agent

    most = max(config.nfe)
    budgets, served = {}, {}
    for name in config.schedules:
        budget = budget_of(arena.model, most, len(arena.times))
        agent = make_agent(name, budget, model=arena.model, solver=None)
        plan = given(name)
        if plan is None and name not in BASELINES:
            raise UserError(
                f"sampler_table is of spacings, files and lists of times, '{name}' is none: evaluate it"
            )
        budgets[name], served[name] = config.nfe, solvers
        if plan is None:
            check_nfe(agent, most, len(arena.times), arena.model)
            continue
        if whole(plan.nfe) not in config.nfe:
            raise UserError(
                f"{name} spends {plan.nfe:g} evaluations, for which --nfe {config.nfe} has no column"
            )
        budgets[name] = [whole(plan.nfe)]
        if plan.solver is not None:
            if plan.solver not in solvers:
                raise UserError(f"{name} was made for solver '{plan.solver}', which is not in the table")
            served[name] = [plan.solver]
    return [
        Line(solver, name, budgets[name])
        for solver in solvers
        for name in config.schedules
        if solver in served[name]
    ]


def _log(config: SamplerTableConfig, parent: Any, rows: Sequence[Row], distance: str) -> None:
    """A child run per solver and schedule, its curve over the budgets."""
    from stepdrop_rl.tracking import start_run

    settings = {key: rows[0][key] for key in ("solver", "schedule")}
    name = f"{rows[0]['solver']}-{rows[0]['schedule']}"
    with start_run(name, mode=config.tracking, config=settings, parent=parent) as child:
        for row in rows:
            child.log_metrics({distance: row[distance], "kid": row["kid"]}, row["budget"])


def report(rows: Sequence[Row], config: SamplerTableConfig, metric: str) -> str:
    """Markdown: a line per solver and schedule, a column per budget, the best of each column in bold."""
    from stepdrop_rl.report.tables import markdown_table

    digits = 4 if metric == "kid" else 2
    lines: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        lines.setdefault((row["solver"], row["schedule"]), {})[row["budget"]] = row
    best = {nfe: min(found[nfe][metric] for found in lines.values() if nfe in found) for nfe in config.nfe}

    def cell(found: dict[int, Row], nfe: int) -> str:
        if nfe not in found:
            return "–"
        value, spent = found[nfe][metric], found[nfe]["nfe"]
        text = f"{value:.{digits}f}"
        text = f"**{text}**" if value == best[nfe] else text
        return text if abs(spent - nfe) < _NEAR else f"{text} ({spent:.3g})"

    table = [
        [solver, schedule, *(cell(found, nfe) for nfe in config.nfe)]
        for (solver, schedule), found in lines.items()
    ]
    return markdown_table(["solver", "schedule", *(f"{nfe} evaluations" for nfe in config.nfe)], table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(SamplerTableConfig, run, "sampler_table", argv)


if __name__ == "__main__":
    sys.exit(main())
