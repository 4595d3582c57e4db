"""Where runs are kept: ``runs/DATA/NAME`` below the current folder, or where ``--output`` says."""

from __future__ import annotations

import sys
from pathlib import Path

from envs.errors import UserError
from stepdrop_rl.weights import require_writable

RUNS = Path("runs")


def run_folder(dataset: str, name: str) -> Path:
    """The default folder of a run."""
    return RUNS / dataset / name


def prepare_output(output: str | None, default: Path, *, marker: str, resume: bool) -> Path:
    """Return a writable folder for a run; nothing that is there is lost.

    ``marker`` is the file that tells that a run is there. To resume, it must be. To start anew, a folder of
    the user's own choice must be free of it; a default one is moved aside.
    """
    folder = Path(output) if output is not None else default
    present = (folder / marker).is_file()
    if resume and not present:
        raise UserError(f"nothing to resume in {folder}: it holds no {marker}")
    if present and not resume:
        if output is not None:
            raise UserError(
                f"{folder} already holds a run: add --resume to go on, or choose another --output"
            )
        number = 1
        while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"the earlier run in {folder} is now {aside}", file=sys.stderr)
    return require_writable(folder)
