"""What is being generated, to compare with: the last results of every price.

The last WINDOW results, per bin of prices (pooled budgets would cancel the correction), frozen within an
episode (so that the reward telescopes), without the sample's own noise, and started from the teacher's
results by an explicit seed. Shapes: R rows; G generated; F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Ground

WINDOW = 1536  # results that make the generated set of a price bin


class GeneratedSet:
    """The last results, per price bin, as each running episode saw them when it began."""

    def __init__(self, ground: Ground, num_rows: int) -> None:
        self.ground = ground
        low, high = (math.log(max(price, 1e-12)) for price in ground.prices)
        self.num_bins = ground.price_bins if high > low else 1
        self._low, self._width = low, max(high - low, 1e-12) / self.num_bins
        device = ground.teacher.device
        # Episodes in flight must not lose sight of their frozen window while others end.
        self.capacity = WINDOW + 2 * num_rows
        self._features = torch.zeros(self.num_bins, self.capacity, ground.real.shape[1], device=device)
        self._images = torch.zeros(self.num_bins, self.capacity, dtype=torch.int64, device=device)
        self._added = torch.zeros(self.num_bins, dtype=torch.int64)
        self._bin = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._seen = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start from the teacher's results, a block of the bank that the seed names."""
        bank = len(self.ground.teacher)
        take = min(WINDOW, bank)
        images = (torch.arange(take, device=self._bin.device) + seed * take) % bank
        self._images[:, :take] = images
        self._features[:, :take] = self.ground.teacher_features[images]
        self._added[:] = take

    def state(self) -> dict[str, Tensor]:
        """The sets."""
        return {"features": self._features, "images": self._images, "added": self._added}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        for name, value in self.state().items():
            value.copy_(tensors[name])

    def begin(self, rows: Tensor, prices: Tensor) -> None:
        """Freeze the rows' view."""
        bins = ((torch.log(prices.clamp(min=1e-12)) - self._low) / self._width).long()
        self._bin[rows] = bins.clamp(0, self.num_bins - 1)
        self._seen[rows] = self._added.to(rows.device)[self._bin[rows]]

    def end(self, candidates: Candidates) -> None:
        """Add results to the sets of their bins."""
        bins = self._bin[candidates.rows]
        for b in bins.unique().tolist():
            chosen = bins == b
            count = int(chosen.sum())
            slots = (torch.arange(count, device=bins.device) + int(self._added[b])) % self.capacity
            self._features[b, slots] = candidates.features[chosen]
            self._images[b, slots] = candidates.images[chosen]
            self._added[b] += count

    def bins(self, rows: Tensor) -> Tensor:
        """The price bins of the rows' episodes."""
        return self._bin[rows]

    def added(self, price_bin: int) -> int:
        """How many results a bin has been given so far."""
        return int(self._added[price_bin])

    @property
    def total(self) -> int:
        """How many results all bins have been given so far."""
        return int(self._added.sum())

    def draw(self, bins: Tensor, u: Tensor) -> Tensor:
        """(B, F) results of these bins, from their windows, by numbers u (B,) in [0, 1)."""
        added = self._added[bins]
        back = (u * added.clamp(max=WINDOW)).long()
        slots = (added - 1 - back) % self.capacity
        return self._features[bins.to(self._bin.device), slots.to(self._bin.device)]

    def window(self, price_bin: int) -> Tensor:
        """(G, F) the last results of a bin."""
        added = self.added(price_bin)
        newest = torch.arange(max(0, added - WINDOW), added, device=self._bin.device)
        return self._features[price_bin, newest % self.capacity]

    def views(self, rows: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per price bin: which of ``rows`` (positions), the set (G, F), and the mask (r, G) of what each may
        see: its window, without its own noise.
        """
        result = []
        bins = self._bin[rows]
        for b in bins.unique().tolist():
            positions = (bins == b).nonzero().squeeze(1)
            added = int(self._added[b])
            filled = min(added, self.capacity)
            slots = torch.arange(filled, device=rows.device)
            # number of the result that lies in each slot: the last one written there
            number = slots + (added - 1 - slots) // self.capacity * self.capacity
            seen = self._seen[rows[positions]].unsqueeze(1)
            visible = (number < seen) & (number >= seen - WINDOW)
            visible &= self._images[b, :filled] != images[positions].unsqueeze(1)
            result.append((positions, self._features[b, :filled], visible))
        return result
