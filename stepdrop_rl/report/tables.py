"""Tables for people: aligned on a terminal, and as Markdown for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from stepdrop_rl.comparison import Outcome
from stepdrop_rl.metrics import paired_difference


def comparison_rows(outcomes: Sequence[Outcome], distance: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the first outcome is the one that the others are compared with, block by block."""
    header = [
        "policy",
        "NFE",
        distance,
        "difference (95 %)",
        "KID",
        "precision",
        "recall",
        "IS",
        "teacher MSE",
        "images/s",
        "ms/image",
        "GFLOPs",
    ]
    rows = []
    first = outcomes[0]
    for outcome in outcomes:
        e = outcome.estimates
        versus = "–"
        if outcome is not first:
            d = paired_difference(e[distance].values, first.estimates[distance].values)
            versus = f"{d.mean:+.2f} ± {d.half_width:.2f}"
        rows.append(
            [
                outcome.name,
                f"{outcome.nfe_mean:.2f} ± {outcome.nfe_std:.2f}",
                f"{e[distance].mean:.2f} ± {e[distance].standard_error:.2f}",
                versus,
                f"{e['kid'].mean:.4f} ± {e['kid'].standard_error:.4f}",
                f"{e['precision'].mean:.3f}",
                f"{e['recall'].mean:.3f}",
                f"{e['is_mean'].mean:.2f}",
                f"{outcome.to_teacher['mse']:.4f}" if outcome.to_teacher else "–",
                f"{outcome.samples.images_per_second:.0f}",
                f"{outcome.latency_ms:.0f}",
                f"{outcome.gflops:.3f}",
            ]
        )
    return header, rows


def ladder_rows(records: Sequence[Mapping[str, Any]], distance: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one model at several budgets."""
    header = ["solver", "NFE", distance, "KID", "IS", "precision", "recall"]
    header += ["density", "coverage", "images/s", "peak MiB"]
    rows = []
    for r in records:
        rows.append(
            [
                r["solver"],
                f"{r['nfe_mean']:.0f}",
                f"{r[distance]:.1f} ± {r[f'{distance}_error']:.1f}",
                f"{r['kid']:.4f} ± {r['kid_error']:.4f}",
                f"{r['is_mean']:.2f}",
                *(f"{r[name]:.3f}" for name in ("precision", "recall", "density", "coverage")),
                f"{r['images_per_second']:.1f}",
                f"{r['peak_memory_mb']:.0f}",
            ]
        )
    return header, rows


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Print to stdout; never folded, so that it can be piped and read."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=max(console.width, 200) if not console.is_terminal else None).print(table)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
