"""``python -m stepdrop_rl.tracking sync DIR [DIR ...]``: bring spools into MLflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from envs.errors import UserError
from stepdrop_rl.tracking import sync


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are :class:`UserError` lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m stepdrop_rl.tracking --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if a spool was left behind, 2 for a person's error, 130 for Ctrl-C."""
    parser = _Parser(prog="python -m stepdrop_rl.tracking", description="Runs that were recorded offline.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="sync")
    command = commands.add_parser(
        "sync",
        help="bring spools into MLflow",
        description="Bring spools into MLflow (at MLFLOW_TRACKING_URI, else ./mlflow.db). A spool that has "
        "been brought in is not brought in twice; one that was interrupted is finished.",
    )
    command.add_argument(
        "folders", nargs="+", metavar="DIR", type=Path, help="a spool, or a folder of spools"
    )
    try:
        return 0 if sync(parser.parse_args(argv).folders) else 1
    except UserError as error:
        print(f"tracking: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tracking: interrupted; sync again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
