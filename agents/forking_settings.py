"""What the hyperparameters of :class:`agents.forking.ForkLearner` may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.errors import UserError


def require_settings(h: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` where hyperparameters do not fit each other."""
    least, most, left, width = (int(h[name]) for name in ("min_nfe", "max_nfe", "left", "width"))
    if not 1 <= least <= most:
        raise UserError(f"need 1 <= min_nfe <= max_nfe, not {least} and {most}")
    if not (1 <= width <= left < least or h["plans"]):
        raise UserError(
            f"need 1 <= width <= left < min_nfe ({least}), not {width} and {left}: a branch cannot spend "
            "less than was spent at the fork"
        )
    if h["plans"] and not 1 <= int(h["looks"]) <= left:
        raise UserError(f"need 1 <= looks <= left ({left}), not {h['looks']}")
    if h["plans"] and h["keep_end"] and h["stretches"] and int(h["looks"]) >= left:
        raise UserError(f"need looks < left ({left}) where the end is kept, not {h['looks']}")
    if int(h["updates"]) < 0:
        raise UserError(f"updates must not be negative: {h['updates']}")
    if int(h["averaged"]) < 1:
        raise UserError(f"averaged must be 1 survey at least, not {h['averaged']}")
    if int(h["update_size"]) < 2:
        raise UserError(f"update_size must be 2 at least, not {h['update_size']}")
    if 0 in h["stretches"]:
        raise UserError("a stretch of 0 is the plan itself: leave it out of stretches")
    if not 0 <= float(h["times_share"]) <= 1:
        raise UserError(f"times_share must lie between 0 and 1, not {h['times_share']}")
    if not 0 < float(h["looks_share"]) <= 1:
        raise UserError(f"looks_share must be more than 0, at most 1, not {h['looks_share']}")
    if h["orders"] and not h["plans"]:
        raise UserError("orders are chosen along plans that are given: give 'fork' plans")


def require_orders(h: Mapping[str, Any], history: int) -> None:
    """The same of orders, with a solver whose jumps look back on ``history`` evaluations."""
    if not h["orders"]:
        return
    others = list(range(1, history))
    told = h["orders"] if isinstance(h["orders"], (list, tuple)) else [None]
    if not others:
        raise UserError("this solver looks back on one evaluation: there are no other orders to choose")
    if any(type(k) is not int or k not in others or told.count(k) > 1 for k in told):
        raise UserError(f"orders, besides the solver's own, are some of {others}, not {h['orders']}")


def margins_of(told: Any, counts: Sequence[int]) -> list[float]:
    """The margin of every budget of ``counts``, as the hyperparameter tells it."""
    each = told if isinstance(told, Mapping) else dict.fromkeys(counts, told)
    try:
        known = {int(count): float(margin) for count, margin in each.items()}
    except (TypeError, ValueError):
        raise UserError(f"margin must be a number, or numbers by budgets, not {told!r}") from None
    for count in known:
        if count not in counts:
            raise UserError(f"margin: there is no budget of {count}, there are {list(counts)}")
    return [known.get(count, 0.0) for count in counts]
