"""The tags that MLflow itself gives to a run, made without it: who, which command, which commit."""

from __future__ import annotations

import contextlib
import functools
import getpass
import subprocess
import sys
from pathlib import Path


def standard_tags() -> dict[str, str]:
    """Return user, source and, where the code lies in a git repository, the commit."""
    tags = {"mlflow.source.name": _source(), "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(
        KeyError, ImportError, OSError
    ):  # a user id without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    if commit := _commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _source() -> str:
    """``python -m`` module, else script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec else (sys.argv[0] if sys.argv and sys.argv[0] else "<console>")


@functools.cache
def _commit() -> str:
    here = Path(__file__)
    try:
        # Only where git knows this very file: an installed package may lie inside someone else's repository.
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
