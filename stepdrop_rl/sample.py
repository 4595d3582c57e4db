"""``python -m stepdrop_rl.sample``: draw images and lay them out in a PNG."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import SampleConfig


def run(config: SampleConfig) -> None:
    """Draw, write the grid, say what it cost."""
    import io
    from dataclasses import asdict

    from PIL import Image

    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.report.images import image_grid
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import require_writable, write_bytes, write_json

    require_writable(Path(config.output).parent)  # said now, not when the images are drawn
    arena, contender = make_arena(config, blocks=1)
    with progress_bar() as bar:
        task = bar.add_task(contender.agent.name, total=config.num_samples, note="")
        samples = arena.engine(contender.agent).sample(
            contender.agent,
            config.num_samples,
            price=contender.price,
            progress=lambda count: bar.advance(task, count),
        )
    grid = image_grid(samples.images)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, format="PNG")
    path = write_bytes(config.output, file.getvalue())
    record: dict[str, Any] = {
        "policy": contender.agent.name,
        "solver": arena.solver,
        "clip": arena.clip,
        "num_samples": config.num_samples,
        "nfe_mean": float(samples.nfe.double().mean()),
        "images_per_second": samples.images_per_second,
        "output": str(path),
    }
    if config.json is not None:
        write_json(config.json, record)
    with start_run(f"sample-{contender.agent.name}", mode=config.tracking, config=asdict(config)) as tracker:
        tracker.log_metrics({key: record[key] for key in ("nfe_mean", "images_per_second")})
        tracker.log_artifact(path)
    print(
        f"{path}: {config.num_samples} images by {contender.agent.name}, solver {arena.solver}, "
        f"{record['nfe_mean']:.2f} evaluations each, {record['images_per_second']:.0f} images/s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(SampleConfig, run, "sample", argv)


if __name__ == "__main__":
    sys.exit(main())
