"""Who gets how many evaluations: the best that anyone could do, and what can be known of it.

Shapes: M images; C numbers of evaluations that an image may get; D entries of what an evaluation shows.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from agents.bisection import bisect

_HALVINGS = 60
_FOLDS = 5


def allocate(errors: Tensor, counts: Tensor, mean: float) -> Tensor:
    """(M,) which of the rising counts (C,) every image gets: Σ errors (M, C) small, ``mean`` spent at most.

    Everett's (1963) multiplier: image i takes argmin error_ic + m·count_c, m ≥ 0 by bisection, which is
    optimal for what it spends. Images that are in two minds at the last m take more while the mean allows.
    """
    errors, counts = errors.double(), counts.double()

    def taken(multiplier: float) -> Tensor:
        return (errors + multiplier * counts).argmin(1)

    span = float(errors.max() - errors.min()) + 1.0
    low, high = bisect(lambda m: float(counts[taken(m)].mean()) > mean, 0.0, span, _HALVINGS)
    generous, thrifty = taken(low), taken(high)
    left = round(mean * len(errors) - float(counts[thrifty].sum()))
    chosen = thrifty.clone()
    for i in (generous != thrifty).nonzero().squeeze(1).tolist():
        more = int(counts[generous[i]] - counts[thrifty[i]])
        if 0 < more <= left:
            chosen[i], left = generous[i], left - more
    return chosen


def told(shown: Tensor, errors: Tensor) -> tuple[float, np.ndarray]:
    """How well errors (M,) are told by what was shown (M, D): R², and the guesses (M,), each by the others.

    A random forest with large leaves (scikit-learn's), in 5 folds: errors have heavy tails, and what cannot
    be told must not be learned by heart.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import cross_val_predict

    x, y = shown.double().numpy(), errors.double().numpy()
    forest = RandomForestRegressor(100, min_samples_leaf=20, max_features=0.3, random_state=0)
    guesses = cross_val_predict(forest, x, y, cv=_FOLDS)
    return 1 - float(np.square(guesses - y).mean() / y.var()), guesses
