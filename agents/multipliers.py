"""What is asked of all that is drawn at a budget, and at what price: realism's ν, the weights w of views.

ν_v, the price of membership in view v, is a Lagrange multiplier under proportional-integral control (Stooke,
Achiam and Abbeel 2020) whose integral leaks. Where every way off the plan lacks something, a sum that forgets
nothing winds up until nobody leaves, and gates that are sure of that are slow to come back. So what lacks is
held to what its price is worth, 0.005 at a price of 25, not to nothing: a margin makes up for it.

w_v, the weight of the distance in view v, grows where that distance is a larger share of the best plan's:
Hedge (Freund and Schapire 1997), so that the worst share is descended.

Shapes: C budgets; V views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RATE = 200.0  # of ν, a survey, by the share that is lacking
_NOW = 5.0  # surveys that what is lacking now counts for: by 10, everyone goes home and comes back in turn
_FORGOTTEN = 0.05  # of what was lacking so far, by a survey: else a price that all flee stays, or climbs
_SAY = 2.0  # of log w_v, a survey, by how much worse a share is
_LEAST = math.log(0.01)  # log w_v: a view that becomes the worst is heard within a few surveys


class Multipliers:
    """Prices and weights of every budget, moved by surveys; none and even ones at first.

    Args:
        budgets: C.
        views: V.
    """

    def __init__(self, budgets: int, views: int) -> None:
        self.lacked = torch.zeros(budgets, views, dtype=torch.float64)  # so far
        self.says = torch.zeros_like(self.lacked)  # log w_v

    def price(self, budget: int, lacking: Tensor) -> Tensor:
        """ν_v, (V,), now that realism is ``lacking`` (V,): as shares, negative where there is enough."""
        self.lacked[budget] = (self.lacked[budget] * (1 - _FORGOTTEN) + lacking).clamp(min=0)
        return (_RATE * (self.lacked[budget] + _NOW * lacking)).clamp(min=0)

    def weights(self, budget: int, shares: Tensor) -> Tensor:
        """w_v, (V,), now that distances are ``shares`` (V,) of the best plan's."""
        says = (self.says[budget] + _SAY * shares).log_softmax(0).clamp(min=_LEAST)
        self.says[budget] = says
        return says.softmax(0)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs."""
        return {"lacked": self.lacked, "says": self.says}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`; KeyError where it is of other views or budgets."""
        found = [tensors[name] for name in ("lacked", "says")]
        if any(one.shape != self.says.shape for one in found):
            raise KeyError("views")  # of a version that had none
        self.lacked, self.says = found
