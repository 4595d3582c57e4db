"""A model on training noise, as searches may ask it: :class:`agents.search.base.Ground`.

Shapes: B images (B, C, H, W); K times of a schedule; G points of a fine grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from agents.base import TimeScale
from agents.search.base import Trajectory
from envs.philox import Role, Stream, normal
from stepdrop_rl.config import DataConfig, RewardName
from stepdrop_rl.data import to_float
from stepdrop_rl.environment import data_of, real_images
from stepdrop_rl.estimates import Clip, estimate
from stepdrop_rl.fixed_pass import FixedPass
from stepdrop_rl.metrics import RewardExtractor, gather, load_reference, load_reward
from stepdrop_rl.metrics.distances import Statistics, frechet_distance
from stepdrop_rl.models.unet import Model
from stepdrop_rl.solvers.base import Solver, data_jump
from stepdrop_rl.teacher import BANK_SEED

_BATCH = 256


class ModelGround:
    """The noise is the teacher bank's; the features are the reward's, never a judge's.

    Args:
        model: The diffusion model.
        solver: Whose schedules are sought.
        data: Where the images are that the model learned from.
        clip: How clean estimates are kept in range.
        extractor: What features are of.
        order: On how many evaluations the solver's jumps look back at most; None: as many as it does.
    """

    def __init__(
        self,
        model: Model,
        solver: Solver,
        data: DataConfig | None = None,
        *,
        clip: Clip = "static",
        extractor: RewardName = "reward",
        order: int | None = None,
    ) -> None:
        self.model = model
        self.solver = solver
        self.clip = clip
        self.order = order
        self.scale: TimeScale = model.denoiser.schedule
        self._schedule = model.denoiser.schedule
        self.t_start, self.t_end = model.info.t_start, model.info.t_end
        self._data = data_of(model, data)
        self._name = extractor
        self._evaluations = 0

    @property
    def evaluations(self) -> int:
        """Network evaluations of single images so far."""
        return self._evaluations

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._schedule.device

    def _noise(self, images: Tensor, s: Tensor | None = None) -> Tensor:
        stream = Stream.INITIAL if s is None else Stream.JUMP
        return normal(
            self.model.denoiser.shape,
            seed=BANK_SEED,
            role=Role.POLICY_TRAINING,
            stream=stream,
            image=images,
            time=None if s is None else s.detach(),
        )

    def clean(self, x: Tensor, times: Tensor) -> Tensor:
        """Clean estimates of ``x`` at ``times`` (B,)."""
        self._evaluations += len(x)
        with torch.no_grad():
            return estimate(self.model.denoiser, x, times.to(x.device), clip=self.clip).x0

    def jump(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Order-1 jumps from times ``t`` to ``s``, both (B,)."""
        return data_jump(self._schedule, x, t.to(x.device), s.to(x.device), x0)

    @torch.no_grad()
    def trajectory(self, times: Tensor, num_images: int) -> Trajectory:
        """The order-1 pass of images 0 … num_images − 1 through ``times``."""
        times = times.to(self.device)
        x = self._noise(torch.arange(num_images, device=self.device))
        noisy: list[Tensor] = []
        clean: list[Tensor] = []
        for i, t in enumerate(times):
            at = t.expand(num_images)
            if i:
                x = self.jump(x, clean[-1], times[i - 1].expand(num_images), at)
            noisy.append(x)
            clean.append(self.clean(x, at))
        return Trajectory(times, torch.stack(noisy), torch.stack(clean), clean[-1])

    def draw(self, times: Tensor, images: Sequence[int], *, network_times: Tensor | None = None) -> Tensor:
        """Results of a schedule for these images; differentiable in both kinds of times."""
        times = times.to(self.device)
        told = None if network_times is None else network_times.to(self.device)
        orders = None if self.order is None else torch.full((len(times),), self.order)
        run = FixedPass(
            self.model.denoiser, self.solver, times, clip=self.clip, network_times=told, orders=orders
        )
        results = []
        for part in torch.tensor(list(images), device=self.device).split(_BATCH):

            def noise(s: Tensor, part: Tensor = part) -> Tensor:
                return self._noise(part, s)

            *_, clean = run.run(self._noise(part), noise)
            self._evaluations += len(part) * len(times)
            results.append(clean)
        return torch.cat(results)

    @cached_property
    def extractor(self) -> RewardExtractor:
        """The reward's."""
        return load_reward(self._name, self._data, self.device)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of the reward's extractor."""
        return self.extractor(images)

    @torch.no_grad()
    def real_features(self, count: int) -> Tensor:
        """Features (M, F) of ``count`` images that the model learned from; of all, where there are fewer."""
        images = to_float(real_images(self._data, count)).to(self.device)
        return torch.cat([self.features(part) for part in images.split(_BATCH)])

    def real(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the real images in the reward's features."""
        return torch.from_numpy(self._statistics["mu"]), torch.from_numpy(self._statistics["sigma"])

    @cached_property
    def _statistics(self) -> Statistics:
        """Of all images that the model learned from; searches ask for them at every candidate."""
        return load_reference(self._data, self._name, self.device)[1].statistics

    @torch.no_grad()
    def distance(self, times: Tensor, num_images: int) -> float:
        """Fréchet distance of the schedule's results in the reward's features."""
        images = self.draw(times, range(num_images))
        return frechet_distance(gather(images, self.extractor)[0], self._statistics)
