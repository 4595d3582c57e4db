"""``StepDropScheduler``: any fixed schedule with any of our solvers, inside diffusers' own pipelines.

    pipeline = DDPMPipeline(unet, StepDropScheduler.of(model, times, solver="multistep"))
    pipeline(batch_size=16)          # as many network calls as there are times

The number of inference steps that a pipeline asks for is not used: the schedule is the schedule.
Shapes: B = batch; images (B, C, H, W); K times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.config import Prediction
from stepdrop_rl.diffusion import NoiseSchedule, image_scale, to_epsilon
from stepdrop_rl.estimates import Clip, in_range
from stepdrop_rl.integrations.noise import BETA_END, BETA_START, alpha_bar_of, completed, stretched
from stepdrop_rl.models.unet import Model
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.solvers.base import Anchor


@dataclass
class StepDropSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """What a step brings: the image at the next time, and the clean estimate."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class StepDropScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler; another's noise schedule comes with ``from_config(other.config, times=...)``.

    Args:
        times: Real times, descending.
        solver: Name of a solver.
        beta_schedule: linear, scaled_linear or squaredcos_cap_v2 (ours: cosine), as diffusers means them.
        num_train_timesteps: T.
        beta_start: First β of linear and scaled_linear.
        beta_end: Last β of them.
        trained_betas: T values of β instead.
        prediction_type: epsilon or v_prediction.
        clip_sample: Clip clean estimates to [−1, 1].
        thresholding: Bring them there by dynamic thresholding instead (diffusers' own name for it).
        network_times: What the network is told instead of the times.
    """

    _compatibles: ClassVar = [kind.name for kind in KarrasDiffusionSchedulers]  # their settings are known
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        times: Sequence[float] = (999.0, 0.0),
        solver: str = "multistep",
        beta_schedule: str = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = BETA_START,
        beta_end: float = BETA_END,
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = True,
        thresholding: bool = False,
        network_times: Sequence[float] | None = None,
    ) -> None:
        if prediction_type not in get_args(Prediction):
            raise unknown_name("prediction_type", str(prediction_type), get_args(Prediction))
        alpha_bar = alpha_bar_of(
            beta_schedule,
            num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            trained_betas=trained_betas,
        )
        name = beta_schedule if trained_betas is None else "trained_betas"
        self.schedule = NoiseSchedule(name, num_train_timesteps, alpha_bar=alpha_bar)
        self.alphas_cumprod = self.schedule.alpha_bar.float()
        self._solver = make_solver(solver)
        self._clip: Clip = "dynamic" if thresholding else "static" if clip_sample else "none"
        self._times = torch.tensor(list(times), dtype=torch.float64)
        self.schedule.check_times(self._times)
        if network_times is not None and len(network_times) != len(self._times):
            raise UserError("network_times must be as many as times")
        self.set_timesteps()

    @classmethod
    def of(
        cls,
        model: Model,
        times: Sequence[float],
        solver: str = "multistep",
        network_times: Sequence[float] | None = None,
        *,
        clip: Clip = "static",
    ) -> StepDropScheduler:
        """The scheduler of a schedule for one of our models."""
        info = model.info
        linear = info.schedule.name == "linear"
        betas = stretched(info.schedule.num_train_timesteps) if linear else {}
        scheduler: StepDropScheduler = cls(
            times=[float(t) for t in times],
            solver=solver,
            beta_schedule=info.schedule.name,
            num_train_timesteps=info.schedule.num_train_timesteps,
            **betas,
            prediction_type=info.prediction,
            clip_sample=clip == "static",
            thresholding=clip == "dynamic",
            network_times=None if network_times is None else [float(t) for t in network_times],
        )
        return scheduler

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> StepDropScheduler | tuple[StepDropScheduler, dict[str, Any]]:
        """The scheduler of a configuration, ours or another class's, with its very noise schedule.

        Raises:
            UserError: Its noise schedule or prediction type is not among ours.
        """
        if isinstance(config, dict):
            config = completed(config)
        made: StepDropScheduler | tuple[StepDropScheduler, dict[str, Any]] = super().from_config(
            config, return_unused_kwargs=return_unused_kwargs, **kwargs
        )
        return made

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Begin anew; the number is not used."""
        del num_inference_steps
        told = self.config.network_times
        shown = self._times if told is None else torch.tensor(list(told), dtype=torch.float64)
        self.timesteps = shown.float().to(device)  # what the pipeline tells the network
        self.num_inference_steps = len(self._times)
        self._index = 0
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # x0, eps, time of each evaluation, newest first

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Nothing to scale."""
        del timestep
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process at real times (B,)."""
        alpha, sigma = self.schedule.alpha_sigma(timesteps.cpu())
        alpha, sigma = (image_scale(v.to(original_samples.device), original_samples) for v in (alpha, sigma))
        return alpha * original_samples + sigma * noise

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> StepDropSchedulerOutput | tuple[Tensor, ...]:
        """One jump, from the schedule's next time to the one after it; the last leads to the clean image."""
        del timestep  # it may be what the network is told
        if self._index >= len(self._times):
            raise UserError("the schedule is at its end: call set_timesteps to begin anew")
        if self.schedule.device != sample.device:
            old = self.schedule
            self.schedule = NoiseSchedule(
                old.name, old.num_train_timesteps, sample.device, alpha_bar=old.alpha_bar
            )
        t = self._times[self._index].to(sample.device).expand(len(sample))
        eps = to_epsilon(self.schedule, self.config.prediction_type, model_output, sample, t)
        alpha, sigma = (image_scale(v, sample) for v in self.schedule.alpha_sigma(t))
        x0 = (sample - sigma * eps) / alpha
        if self._clip != "none":
            x0 = in_range(x0, self._clip)
            eps = (sample - alpha * x0) / sigma
        depth = max(2, self._solver.history)
        self._seen = [(x0, eps, t), *self._seen][:depth]
        self._index += 1
        if self._index == len(self._times):
            after = x0
        else:
            newest = [self._seen[min(i, len(self._seen) - 1)] for i in range(depth)]
            x0s, noises, times = (torch.stack(values, 1) for values in zip(*newest, strict=True))
            count = torch.full((len(sample),), len(self._seen), device=sample.device)
            anchor = Anchor(sample, x0s, times, count, noises)
            s = self._times[self._index].to(sample.device).expand(len(sample))
            noise = None
            if self._solver.stochastic:
                noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            after = self._solver.jump(self.schedule, anchor, s, noise)
        return (
            StepDropSchedulerOutput(prev_sample=after, pred_original_sample=x0) if return_dict else (after,)
        )
