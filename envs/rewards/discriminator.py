"""A discriminator: a small network that learns to tell real images from the latest results.

Where it is right, its logit is log p_real(f) − log p_generated(f | price), up to label smoothing (Goodfellow
et al. 2014): what the log-ratio scores estimate by kernels and neighbours, learned instead.

It stays bounded, or a policy would learn to please its flaws: labels are smoothed, so that no certainty pays;
weights decay; hidden units saturate. It learns between episodes, a few steps per so many results, and an
episode is scored by the network that it began with.

Shapes: B = batch; F features; R candidates. The network sees F standardised features and the price's bin.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from envs.rewards.base import Candidates, Ground
from envs.rewards.generated import GeneratedSet

WIDTH = 64
BATCH = 256
WARM_UP = 200  # steps on the teacher's results, before there are others
REFRESH = 256  # results between two lessons
LESSON = 20  # steps
SMOOTHING = 0.1  # labels are 0.9 and 0.1: the logit of a sure network is ± 2.2
_RATE, _DECAY = 1e-3, 0.01

Parameters = list[Tensor]


def logit(parameters: Parameters, x: Tensor) -> Tensor:
    """(B,) of inputs (B, F + 1): tanh layers, then a sum."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.tanh(linear(x, weight, bias))
    return linear(x, parameters[-2], parameters[-1]).squeeze(1)


class _Student:
    """A network, its optimiser and the chance that draws its batches."""

    def __init__(self, inputs: int, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters: Parameters = []
        for wide, out in ((inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)):
            weight = torch.randn(out, wide, generator=self.generator) / wide**0.5
            self.parameters += [weight.to(device), torch.zeros(out, device=device)]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=_RATE, weight_decay=_DECAY)

    def step(self, real: Tensor, generated: Tensor) -> None:
        """One step on inputs (B, F + 1) of each kind."""
        said = logit(self.parameters, torch.cat((real, generated)))
        truth = torch.full_like(said, SMOOTHING)
        truth[: len(real)] = 1 - SMOOTHING
        self.optimizer.zero_grad()
        binary_cross_entropy_with_logits(said, truth).backward()
        self.optimizer.step()

    def frozen(self) -> Parameters:
        """A copy that learns nothing more."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def state(self) -> dict[str, Tensor]:
        """Weights, moments, generator."""
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"moment.{i}.{key}": torch.as_tensor(value) for key, value in entry.items()}
        return tensors | {"generator": self.generator.get_state()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"weight.{i}"])
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "moment":
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"].cpu())


class Discriminator:
    """The logit of a network that learns real against the latest results; higher is more real."""

    needs_features: ClassVar[bool] = True

    def __init__(self, ground: Ground, num_rows: int) -> None:
        self.ground = ground
        self.generated = GeneratedSet(ground, num_rows)
        self._mean, self._deviation = ground.real.mean(0), ground.real.std(0).clamp(min=1e-6)
        self._version = torch.zeros(num_rows, dtype=torch.int64, device=ground.teacher.device)
        self._networks: dict[int, Parameters] = {}  # by version; those of running episodes and the newest
        self._newest = -1
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start again: a fresh network, warmed up on the teacher's results."""
        self.generated.reset(seed)
        self._student = self._fresh(seed)
        self._learn(WARM_UP)

    def _fresh(self, seed: int) -> _Student:
        return _Student(len(self._mean) + 1, seed, self.ground.teacher.device)

    def _inputs(self, f: Tensor, bins: Tensor) -> Tensor:
        """(B, F + 1): standardised features and the bin's log price, −1 to 1 (0: there is one price)."""
        place = (2 * bins.to(f) + 1) / self.generated.num_bins - 1
        return torch.cat(((f - self._mean) / self._deviation, place.unsqueeze(1)), 1)

    def _learn(self, steps: int) -> None:
        """Steps on real images and results of the same price bins; then a new version."""
        student, real = self._student, self.ground.real
        for _ in range(steps):
            bins = torch.randint(self.generated.num_bins, (BATCH,), generator=student.generator)
            results = self.generated.draw(bins, torch.rand(BATCH, generator=student.generator))
            chosen = torch.randint(len(real), (BATCH,), generator=student.generator).to(real.device)
            bins = bins.to(real.device)
            student.step(self._inputs(real[chosen], bins), self._inputs(results, bins))
        self._trained_at = self.generated.total
        self._publish()

    def _publish(self) -> None:
        running = set(self._version.unique().tolist())
        self._networks = {v: network for v, network in self._networks.items() if v in running}
        self._newest += 1
        self._networks[self._newest] = self._student.frozen()

    def state(self) -> dict[str, Tensor]:
        """The network, its optimiser, its generator and the generated sets."""
        named = {"trained_at": torch.tensor(self._trained_at)}
        named |= {f"student.{name}": value for name, value in self._student.state().items()}
        return named | {f"generated.{name}": value for name, value in self.generated.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.generated.load_state(part("generated."))
        self._student.load_state(part("student."))
        self._trained_at = int(tensors["trained_at"])
        self._publish()

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Learn, if there is enough that is new; these rows keep what is known now."""
        self.generated.begin(rows, prices)
        if self.generated.total - self._trained_at >= REFRESH:
            self._learn(LESSON)
        self._version[rows] = self._newest

    def score(self, candidates: Candidates) -> Tensor:
        """(R,)."""
        versions = self._version[candidates.rows]
        x = self._inputs(candidates.features, self.generated.bins(candidates.rows))
        result = torch.empty(len(x), device=x.device)
        for version in versions.unique().tolist():
            here = versions == version
            result[here] = logit(self._networks[version], x[here])
        return result

    def end(self, candidates: Candidates) -> None:
        """Results join the set."""
        self.generated.end(candidates)

    def gain(self) -> float:
        """As if full trajectories filled the world, and as if first evaluations did, a network each."""
        first = self.ground.features(self.ground.first)
        full = self.ground.teacher_features[: len(first)]
        return self._stationary(full) - self._stationary(first)

    def _stationary(self, f: Tensor) -> float:
        student, real = self._fresh(0), self.ground.real
        middle = torch.full((BATCH,), (self.generated.num_bins - 1) / 2, device=f.device)
        for _ in range(WARM_UP):
            draws = [torch.randint(len(kind), (BATCH,), generator=student.generator) for kind in (real, f)]
            real_batch, batch = (
                self._inputs(kind[i.to(f.device)], middle) for kind, i in zip((real, f), draws, strict=True)
            )
            student.step(real_batch, batch)
        with torch.no_grad():
            return float(logit(student.parameters, self._inputs(f, middle[:1].expand(len(f)))).mean())
