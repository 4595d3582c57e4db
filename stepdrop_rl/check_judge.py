"""``python -m stepdrop_rl.check_judge``: may this network judge? Its distances on spoilt real images."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stepdrop_rl.cli import command
from stepdrop_rl.config import CheckJudgeConfig


def run(config: CheckJudgeConfig) -> None:
    """Print the table; :class:`UserError` where the judge is not admitted."""
    from dataclasses import asdict

    from envs.errors import UserError
    from stepdrop_rl.data import load
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.metrics import default_judge, distance_name, load_reference
    from stepdrop_rl.metrics.admission import examine, objections
    from stepdrop_rl.report.tables import markdown_table
    from stepdrop_rl.weights import write_json, write_text

    name = config.metrics.judge or default_judge(config.data.name)
    extractor, _ = load_reference(config.data, name, resolve_device(config.device))
    found = examine(extractor, load(config.data, "judge"), config.num_images)
    against = objections(extractor, found)
    distance = distance_name(extractor.name)
    columns = [distance, "kid", "precision", "recall", "density", "coverage"]
    rows = [
        [f.name, *(f"{f.values[c]:.3f}" if c != distance else f"{f.values[c]:.1f}" for c in columns)]
        for f in found
    ]
    text = markdown_table([f"{config.data.name}, {config.num_images:,} images", *columns], rows)
    print(text)
    if config.report is not None:
        write_text(config.report, text)
    if config.json is not None:
        write_json(
            config.json,
            {"extractor": extractor.name, "findings": [asdict(f) for f in found], "against": against},
        )
    if against:
        raise UserError(f"{extractor.name} is not admitted: {'; '.join(against)}")
    print(f"{extractor.name} is admitted to judge {config.data.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(CheckJudgeConfig, run, "check_judge", argv)


if __name__ == "__main__":
    sys.exit(main())
