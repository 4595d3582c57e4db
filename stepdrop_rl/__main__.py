"""``python -m stepdrop_rl``: which commands there are."""

from __future__ import annotations

import sys

from stepdrop_rl.cli import COMMANDS, summary_of

_OTHERS = {"tracking sync DIR": "Bring runs that were recorded offline into MLflow."}


def main() -> int:
    """Print the commands; exit code 2 if something was asked for."""
    lines = ["Learn when a diffusion model needs to be evaluated. Commands (each has --help):", ""]
    named = {name: summary_of(name) for name in COMMANDS} | _OTHERS
    lines += [f"  python -m stepdrop_rl.{name:<20} {summary}" for name, summary in named.items()]
    asked = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    print("\n".join(lines), file=sys.stderr if asked else sys.stdout)
    return 2 if asked else 0


if __name__ == "__main__":
    sys.exit(main())
