"""``python -m stepdrop_rl.sample``: draw images, laid out in one PNG or each in a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import SampleConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stepdrop_rl.arena import Arena, Contender


def run(config: SampleConfig) -> None:
    """Draw, write, say what it cost."""
    from dataclasses import asdict

    from envs.errors import UserError
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import require_writable, write_json

    path = Path(config.output)
    if path.suffix not in ("", ".png"):
        raise UserError(f"{path}: a grid is a .png file, a folder has no suffix")
    require_writable(path if path.suffix == "" else path.parent)  # said now, not when the images are drawn
    arena, contender = make_arena(config, blocks=1)
    with progress_bar() as bar:
        task = bar.add_task(contender.agent.name, total=config.num_samples, note="")
        write = _write_grid if path.suffix else _write_files
        nfe_mean, images_per_second = write(
            path, arena, contender, config.num_samples, lambda count: bar.advance(task, count)
        )
    record: dict[str, Any] = {
        "policy": contender.agent.name,
        "solver": arena.solver,
        "clip": arena.clip,
        "num_samples": config.num_samples,
        "nfe_mean": nfe_mean,
        "images_per_second": images_per_second,
        "output": str(path),
    }
    if config.json is not None:
        write_json(config.json, record)
    with start_run(f"sample-{contender.agent.name}", mode=config.tracking, config=asdict(config)) as tracker:
        tracker.log_metrics({key: record[key] for key in ("nfe_mean", "images_per_second")})
        if path.is_file():
            tracker.log_artifact(path)
    print(
        f"{path}: {config.num_samples} images by {contender.agent.name}, solver {arena.solver}, "
        f"{nfe_mean:.2f} evaluations each, {images_per_second:.0f} images/s"
    )


def _write_grid(
    path: Path, arena: Arena, contender: Contender, count: int, progress: Callable[[int], None]
) -> tuple[float, float]:
    """All images in one; mean evaluations and images/s."""
    from stepdrop_rl.report.images import image_grid
    from stepdrop_rl.weights import write_bytes

    engine = arena.engine(contender.agent)
    samples = engine.sample(contender.agent, count, price=contender.price, progress=progress)
    write_bytes(path, _png(image_grid(samples.images)))
    return float(samples.nfe.double().mean()), samples.images_per_second


def _write_files(
    path: Path, arena: Arena, contender: Contender, count: int, progress: Callable[[int], None]
) -> tuple[float, float]:
    """Each image as it is finished, however many there are; mean evaluations and images/s, files included."""
    import time

    from envs.errors import UserError
    from stepdrop_rl.data import as_files

    began, evaluations = time.perf_counter(), 0
    for finished in arena.engine(contender.agent).stream(contender.agent, count, price=contender.price):
        if finished is None:
            continue
        evaluations += int(finished.evaluated.sum())
        pixels = as_files(finished.images).permute(0, 2, 3, 1).cpu().numpy()
        for image, each in zip(finished.ids.tolist(), pixels, strict=True):
            file = path / f"{image:06d}.png"
            try:  # not through write_bytes, whose fsync costs more than drawing
                file.write_bytes(_png(each.squeeze(-1) if each.shape[-1] == 1 else each))
            except OSError as error:
                raise UserError(f"cannot write {file}: {error.strerror}") from error
        progress(len(pixels))
    return evaluations / count, count / (time.perf_counter() - began)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """A file of (H, W, 3) or (H, W) pixels."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(SampleConfig, run, "sample", argv)


if __name__ == "__main__":
    sys.exit(main())
