"""What a study says of costs and of the proposal's questions, in tables."""

from __future__ import annotations

from typing import Any

from stepdrop_rl.report.page import Block
from stepdrop_rl.studies.entries import Entry, ratio
from stepdrop_rl.studies.plan import FULL, effort
from stepdrop_rl.studies.verdict import Study


def efforts(study: Study) -> list[Block]:
    """What finding policies and schedules took, budget by budget."""
    config = study.config
    rows = []
    for solver in config.solvers:
        judged = {(e.contender, e.nfe) for e in study.entries if e.solver == solver and e.control is None}
        for name in (*config.policies, *config.searches):
            cells = [
                f"{effort(config, name, solver, nfe) / 1000:,.0f}" if (name, nfe) in judged else "–"
                for nfe in config.nfe
            ]
            if any(cell != "–" for cell in cells):
                rows.append([name, solver, *cells])
    if not rows:
        return []
    text = (
        "Thousands of network evaluations of single images that finding each took, by estimate; a gradient "
        "through one counts as four. Of a policy's training a budget's share, with the searches that it "
        "begins with (where they are files, without them)."
    )
    header = ["contender", "solver", *(f"for {nfe:g} evaluations" for nfe in config.nfe)]
    return [Block(heading="What finding them took"), Block(text=text), Block(table=(header, rows))]


def questions(study: Study) -> list[Block]:
    """The proposal's questions, in numbers."""
    judge = study.judges[0]
    rows: list[list[str]] = []
    for solver in study.config.solvers:
        full = study.full(solver)
        if full is None:
            continue
        whole = full.estimate(judge, study.distance).mean
        score = full.estimate(judge, "is_mean").mean
        spent = full.mean("nfe_mean")
        names = dict.fromkeys(e.name for e in study.entries if e.solver == solver and e.name != FULL)
        for name in names:
            mine = sorted((e for e in study.entries if (e.name, e.solver) == (name, solver)), key=_nfe)
            cells = [name, solver]
            for slack in (1.1, 1.2):
                near = [e for e in mine if e.estimate(judge, study.distance).mean <= slack * whole]
                cells.append(
                    f"{near[0].nfe:g} ({1 - ratio(near[0].mean('nfe_mean'), spent):.0%} fewer evaluations)"
                    if near
                    else "–"
                )
            good = [e for e in mine if e.estimate(judge, "is_mean").mean >= 0.9 * score]
            cells.append(f"{good[0].nfe:g}" if good else "–")
            rows.append(cells)
    header = ["contender", "solver", "within 10 % of full", "within 20 %", "IS ≥ 90 %"]
    blocks = [Block(heading="The proposal's questions")]
    if rows:
        text = (
            "The smallest budget at which the distance comes within 10 and 20 % of the full one's, "
            "with the evaluations that it saves, which are nearly all of the time, and the smallest whose "
            "Inception score is 90 % of it. It saves no memory: the same network runs on the same batch."
        )
        blocks += [Block(text=text), Block(table=(header, rows))]
    else:
        blocks.append(Block(text="They are told beside the full trajectory, which is not judged here."))
    curves = _p_skip(study)
    if curves is not None:
        blocks += [
            Block(text="Distance against the share of grid points that chance skips, by curve of p_skip:"),
            Block(table=curves),
        ]
    return blocks


def _nfe(entry: Entry) -> float:
    return entry.nfe


def _p_skip(study: Study) -> tuple[list[str], list[list[str]]] | None:
    judge = study.judges[0]
    chance: dict[tuple[str, str], dict[float, Entry]] = {}
    for entry in study.entries:
        if entry.name == "bernoulli" or entry.name.startswith("skip_"):
            chance.setdefault((entry.name, entry.solver), {})[entry.nfe] = entry
    if not chance:
        return None
    header = ["curve", "solver"]
    first: Any = next(iter(chance.values()))
    points = len(next(iter(first.values())).results[0]["times"])
    header += [f"p_skip {1 - nfe / points:.2f} ({nfe:g})" for nfe in study.config.nfe]
    rows = []
    for (name, solver), found in chance.items():
        cells = [
            f"{found[nfe].estimate(judge, study.distance).mean:.2f}" if nfe in found else "–"
            for nfe in study.config.nfe
        ]
        rows.append([name, solver, *cells])
    return header, rows
