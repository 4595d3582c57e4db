"""Figures: quality against NFE, evaluation rate per timestep, samples side by side from the same noise.

Shapes: M = images; N = points of a grid.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # no window, on any machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter
from torch import Tensor

from stepdrop_rl.comparison import Outcome
from stepdrop_rl.engine import Samples
from stepdrop_rl.report.images import image_grid

_COLOURS = {
    "uniform": "#7f7f7f",
    "quadratic": "#ff7f0e",
    "bernoulli": "#8c564b",
    "log_snr": "#9467bd",
    "full": "#2ca02c",
}
LEARNED = "#1f77b4"
_TOP = 6  # times the best at the first budget: what is worse is off the figure
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "figure.dpi": 110,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file holds it; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)  # long names beside rows
    plt.close(figure)
    return buffer.getvalue()


def colour(name: str) -> str:
    """One colour per agent, in every figure."""
    return _COLOURS.get(name.removesuffix("*"), LEARNED)


def quality_against_nfe(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    floor: float | None,
    distance: str,
    num_images: int,
    dataset: str,
) -> Figure:
    """Distance over mean NFE, one line per agent; ``floor`` is the full trajectory's."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        for name, points in curves.items():
            nfe, value = zip(*sorted(points), strict=True)
            style = "o:" if name.endswith("*") else "o-"
            axes.plot(nfe, value, style, color=colour(name), label=name, linewidth=1.8, markersize=5)
        if floor is not None:
            axes.axhline(floor, color=colour("full"), linestyle="--", linewidth=1.2, label="full trajectory")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())  # 4, 5, 10: not powers of ten
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 1)))
        axes.set_xlabel("network evaluations per image (mean)")
        axes.set_ylabel(f"{distance} (lower is better)")
        axes.set_title(f"{dataset}: {num_images:,} images per point, same noise", loc="left", fontsize=10)
        axes.legend(frameon=False)
    return figure


def sampler_curves(rows: Sequence[Mapping[str, Any]], distance: str, title: str) -> Figure:
    """Distance over evaluations: the best spacing of every solver, thick, and the others thin."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        curves.setdefault(row["solver"], {}).setdefault(row["schedule"], []).append(
            (row["nfe"], row[distance])
        )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.6), layout="constrained")
        for number, (solver, schedules) in enumerate(curves.items()):
            shade = plt.get_cmap("tab20")(number % 20)
            most = max(map(len, schedules.values()))  # a file of times has a single point
            best = min(
                (name for name in schedules if len(schedules[name]) == most),
                key=lambda name: sum(math.log(value) for _, value in schedules[name]),
            )
            for schedule, points in schedules.items():
                nfe, value = zip(*points, strict=True)
                if schedule == best:
                    style = "--" if solver.startswith("diffusers:") else "-"
                    axes.plot(nfe, value, style, color=shade, linewidth=1.8, label=f"{solver}, {schedule}")
                else:
                    marker = "." if len(points) == 1 else ""
                    axes.plot(nfe, value, color=shade, linewidth=0.5, alpha=0.4, marker=marker)
        axes.set_yscale("log")
        axes.set_ylim(top=_TOP * min(row[distance] for row in rows if row["budget"] == rows[0]["budget"]))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 1)))
        axes.set_xlabel("network evaluations per image")
        axes.set_ylabel(f"{distance} (lower is better)")
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(frameon=False, fontsize=7, ncols=2)
    return figure


class Strip(NamedTuple):
    """How often each time of a grid is evaluated.

    Args:
        name: What stands beside it.
        times: (N,) the grid.
        rates: (N,) share of the images that are evaluated there.
        colour: Of its bars.
    """

    name: str
    times: Sequence[float]
    rates: Sequence[float]
    colour: str


def strips(rows: Sequence[Strip], height: float, title: str) -> Figure:
    """One strip below the other, ``height`` inches each, time running as sampling does: to the image."""
    start = max(max(strip.times) for strip in rows)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(
            len(rows),
            1,
            figsize=(6.8, 0.6 + height * len(rows)),
            sharex=True,
            layout="constrained",
            squeeze=False,
        )
        for axes, strip in zip(panels[:, 0], rows, strict=True):
            axes.bar(strip.times, strip.rates, width=start / 64, color=strip.colour)
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 1])
            axes.set_xlim(start * 1.02, -start * 0.02)
            _name_beside(axes, strip.name)
        panels[0, 0].set_title(title, loc="left", fontsize=10)
        panels[-1, 0].set_xlabel("diffusion time t")
    return figure


def _name_beside(axes: Axes, name: str) -> None:
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def evaluation_rates(outcomes: Sequence[Outcome]) -> Figure:
    """How often each grid point is evaluated: one strip per contender."""
    rows = [
        Strip(
            f"{outcome.name}\n{outcome.nfe_mean:.1f}",
            outcome.samples.times.tolist(),
            outcome.samples.evaluated.float().mean(0).tolist(),
            colour(outcome.name),
        )
        for outcome in outcomes
    ]
    return strips(rows, 0.8, "share of images evaluated at each timestep")


def samples_side_by_side(outcomes: Sequence[Outcome], count: int = 12) -> Figure:
    """One row per contender, one column per noise."""
    rows = [(f"{one.name}\n{one.nfe_mean:.1f}", one.samples.images[:count]) for one in outcomes]
    return _image_rows(rows, count)


def images_by_evaluations(samples: Samples, count: int = 12) -> Figure | None:
    """Images that got few evaluations above those that got many: a row per number of them.

    Numbers that fewer than one in a hundred images got are left out; None where all got the same. Of a large
    set the first images alone are still there to be shown: shares are those of all.
    """
    here = samples.nfe[: len(samples.images)]
    spent, images_of_it = samples.nfe.unique(return_counts=True)
    shares = images_of_it.double() / len(samples.nfe)
    rows = [
        (f"{n} evaluations\n{share:.0%} of images", samples.images[here == n][:count])
        for n, share in zip(spent.tolist(), shares.tolist(), strict=True)
        if share >= 0.01 and bool((here == n).any())
    ]
    return _image_rows(rows, count) if len(rows) > 1 else None


def images_by_schedule(
    samples: Samples, orders: Tensor | None = None, count: int = 12, most: int = 6
) -> Figure | None:
    """Images that got the same whole schedule side by side: a row for each of the ``most`` that are usual.

    Rows are ordered by evaluations, and told apart by the last three times and, where ``orders`` (N,) of the
    jumps to the grid's points are given, by those that are lower than others. None where all got the same.
    """
    schedules, which, images_of_it = samples.evaluated.unique(dim=0, return_inverse=True, return_counts=True)
    if len(schedules) < 2:
        return None
    usual = images_of_it.argsort(descending=True)[:most].tolist()
    rows = []
    for k in sorted(usual, key=lambda k: (int(schedules[k].sum()), *samples.times[schedules[k]].tolist())):
        times = [f"{t:.0f}" for t in samples.times[schedules[k]].tolist()]
        if orders is not None:
            lower = [f" (order {o})" if o < int(orders.max()) else "" for o in orders[schedules[k]].tolist()]
            times = [t + told for t, told in zip(times, lower, strict=True)]
        share = float(images_of_it[k]) / len(which)
        last = ", ".join(times[-3:])
        rows.append((f"{len(times)}: … {last}\n{share:.0%} of images", samples.images[which == k][:count]))
    return _image_rows(rows, count)


def _image_rows(rows: Sequence[tuple[str, Tensor]], count: int) -> Figure:
    """Rows of ``count`` images at most, what they are beside them."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(
            len(rows), 1, figsize=(0.62 * count + 1.4, 0.68 * len(rows)), layout="constrained", squeeze=False
        )
        for axes, (name, images) in zip(panels[:, 0], rows, strict=True):
            axes.imshow(image_grid(images, columns=count))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            _name_beside(axes, name)
    return figure
