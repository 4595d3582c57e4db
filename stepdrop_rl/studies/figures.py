"""A study's figures: quality against NFE with the nearest rivals, and where policies evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter

from stepdrop_rl.report.figures import LEARNED, STYLE, Strip, strips
from stepdrop_rl.studies.entries import Entry, ratio
from stepdrop_rl.studies.plan import FULL
from stepdrop_rl.studies.verdict import Study

_SHOWN_RIVALS = 9  # the nearest ones: a study's tables have all
_LOOKING = (LEARNED, "#d62728", "#111111")  # policies that look; rivals get the other colours
_Point = tuple[float, float, float]  # evaluations, distance, half of its interval


def study_curves(study: Study, solver: str) -> Figure:
    """A study's policies over their budgets, with intervals, and the nearest of those they are up against."""
    judge = study.judges[0]
    lines: dict[str, list[Entry]] = {}
    for entry in study.entries:
        if entry.solver == solver and entry.control is None and entry.contender != FULL:
            lines.setdefault(entry.contender, []).append(entry)
    shown = _nearest(study, lines)
    beyond = len(lines) - len(shown)
    lines = {name: entries for name, entries in lines.items() if name in shown}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.6), layout="constrained")
        strong, pale = cycle(_LOOKING), cycle(plt.get_cmap("tab20").colors[2:])  # type: ignore[attr-defined]
        for name, entries in lines.items():
            entries.sort(key=lambda entry: entry.nfe)
            found = [entry.estimate(judge, study.distance) for entry in entries]
            points = [
                (entry.mean("nfe_mean"), estimate.mean, estimate.half_width)
                for entry, estimate in zip(entries, found, strict=True)
            ]
            nfe, value, width = zip(*_broken(points, entries, study.config.nfe), strict=True)
            if study.looks(entries[0]):
                axes.errorbar(
                    nfe, value, width, fmt="o-", color=next(strong), linewidth=2.2, capsize=3, label=name
                )
            else:
                axes.plot(nfe, value, ".-", color=next(pale), linewidth=0.9, label=name)
        full = study.full(solver)
        if full is not None:
            floor = full.estimate(judge, study.distance).mean
            axes.axhline(floor, color="#222222", linestyle="--", linewidth=1.2, label=f"full ({full.nfe:g})")
        if beyond:
            axes.plot([], [], " ", label=f"(farther off: {beyond} more)")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 1)))
        axes.set_xlabel("network evaluations per image (mean)")
        axes.set_ylabel(f"{study.distance} (lower is better)")
        title = f"{study.config.data.name}, solver {solver} (bars: the noise's spread, which all share)"
        axes.set_title(title, loc="left", fontsize=10)
        if axes.get_legend_handles_labels()[0]:  # none while nobody is judged
            figure.legend(loc="outside lower center", frameon=False, fontsize=7, ncols=3)
    return figure


def _broken(points: Sequence[_Point], entries: Sequence[Entry], budgets: Sequence[float]) -> list[_Point]:
    """Points of a line, with a gap wherever a budget of the study was not judged between two of them."""
    line = [points[0]]
    for point, entry, before in zip(points[1:], entries[1:], entries, strict=False):
        if any(before.nfe < budget < entry.nfe for budget in budgets):
            line.append((math.nan, math.nan, math.nan))
        line.append(point)
    return line


def _nearest(study: Study, lines: Mapping[str, Sequence[Entry]]) -> set[str]:
    """Policies that look, and the rivals nearest to the best of a budget, on the mean over theirs."""
    judge = study.judges[0]
    distance = {
        (name, entry.nfe): entry.estimate(judge, study.distance).mean
        for name, entries in lines.items()
        for entry in entries
    }
    best = {nfe: min(d for (_, at), d in distance.items() if at == nfe) for _, nfe in distance}

    def behind(name: str) -> float:
        ratios = [ratio(d, best[nfe]) for (who, nfe), d in distance.items() if who == name]
        return sum(ratios) / len(ratios)

    looking = {name for name, entries in lines.items() if study.looks(entries[0])}
    rivals = sorted((name for name in lines if name not in looking), key=behind)
    return looking | set(rivals[:_SHOWN_RIVALS])


def rates_by_budget(study: Study, solver: str) -> Figure | None:
    """Which timesteps a policy evaluates: a strip per policy and budget; None where there is no policy."""
    learned = [
        e
        for e in study.entries
        if e.solver == solver and e.control is None and e.contender in study.config.policies
    ]
    if not learned:
        return None
    rows = []
    for entry in learned:
        first = entry.results[0]
        rows.append(Strip(f"{entry.name}\n{entry.nfe:g}", first["times"], first["rates"], LEARNED))
    return strips(rows, 0.6, "share of images evaluated at each timestep (seed 0)")
