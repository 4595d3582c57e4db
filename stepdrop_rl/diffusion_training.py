"""The training loop's mathematics and state: batches, step, EMA, checkpoint. No printing, no tracking.

A step's images, times and noise are functions of (seed, step, index in the batch), dropout's masks of
(seed, step): a resumed run goes through the same numbers. Shapes: B = batch; images (B, C, H, W).
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.philox import Role, Stream, normal, uniform
from stepdrop_rl.config import TrainDiffusionConfig
from stepdrop_rl.data import to_float
from stepdrop_rl.diffusion import NoiseSchedule, q_sample
from stepdrop_rl.losses import LOSSES, Batch, Loss
from stepdrop_rl.models.unet import autocast_type
from stepdrop_rl.weights import load_into, load_weights, save_weights

CHECKPOINT = "checkpoint"
_STEPS_PER_SEED = 1 << 24

# What a resumed run may change without changing its numbers.
_FREE = (
    "output",
    "resume",
    "max_minutes",
    "tracking",
    "json",
    "device",
    "checkpoint_every",
    "sample_every",
    "choose_ends",
)


def epoch_order(num_images: int, epoch: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Permutation of the images in an epoch: (num_images,) int64."""
    positions = epoch * num_images + torch.arange(num_images, device=device)
    u = uniform(1, seed=seed, role=Role.DIFFUSION_TRAINING, stream=Stream.DATA_ORDER, image=positions)
    return u.squeeze(1).argsort(stable=True)


def batch_indices(num_images: int, batch_size: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which images step ``step`` trains on, and the run-wide numbers of its examples: both (B,)."""
    examples = step * batch_size + torch.arange(batch_size)
    epochs = examples // num_images
    chosen = torch.empty_like(examples)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        chosen[here] = epoch_order(num_images, epoch, seed)[examples[here] % num_images]
    return chosen, examples


class Trainer:
    """A training run of one network.

    Args:
        config: Its settings.
        network: The network, on its device.
        images: (N, C, H, W) uint8 training images.
        schedule: Noise schedule, on the same device.
    """

    def __init__(
        self, config: TrainDiffusionConfig, network: nn.Module, images: Tensor, schedule: NoiseSchedule
    ) -> None:
        self.config = config
        self.network = network
        self.schedule = schedule
        self.images = images.to(schedule.device)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.loss: Loss = LOSSES.load(config.loss.name)
        self.autocast = autocast_type(config.precision, schedule.device)
        self.step = 0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at the declared last step."""
        c = self.config
        if step < c.warmup_steps:
            return c.learning_rate * (step + 1) / c.warmup_steps
        done = (step - c.warmup_steps) / max(c.steps - c.warmup_steps, 1)
        return c.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images, their times and their noise: functions of (seed, step, index)."""
        c = self.config
        chosen, examples = batch_indices(len(self.images), c.batch_size, step, c.seed)
        examples = examples.to(self.images.device)
        role = Role.DIFFUSION_TRAINING
        u = uniform(2, seed=c.seed, role=role, stream=Stream.DATA_TIME, image=examples)
        x0 = to_float(self.images[chosen.to(self.images.device)])
        if c.flip:
            x0 = torch.where((u[:, 1] < 0.5).reshape(-1, 1, 1, 1), x0.flip(-1), x0)
        t = u[:, 0] * (self.schedule.num_train_timesteps - 1)
        eps = normal(tuple(x0.shape[1:]), seed=c.seed, role=role, stream=Stream.DATA_NOISE, image=examples)
        return x0, t, eps

    def train_step(self) -> dict[str, float | Tensor]:
        """One optimiser step; returns its loss and gradient norm (tensors: no synchronisation)."""
        c = self.config
        x0, t, eps = self.batch(self.step)
        x_t = q_sample(self.schedule, x0, t, eps)
        device = self.images.device.type
        torch.manual_seed(c.seed * _STEPS_PER_SEED + self.step)  # dropout's masks, resumed or not
        with torch.autocast(device, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            output = self.network(x_t, t.float()).sample
        loss = self.loss(Batch(self.schedule, c.prediction, x0, t, eps, x_t, output), c)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), c.grad_clip)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._update_ema()
        self.step += 1
        return {"loss": loss.detach(), "grad_norm": norm.detach(), "learning_rate": rate}

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))  # forgets the random start
        averaged: list[Tensor] = list(self.ema.parameters())
        current: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mean, value in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            mean.copy_(value)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the run's numbers."""
        settings = {key: value for key, value in asdict(self.config).items() if key not in _FREE}
        settings["data"] = {"name": self.config.data.name, "size": self.config.data.size}  # not where it lies
        return settings

    def save(self, folder: Path) -> None:
        """Write a checkpoint atomically: network, EMA, optimiser moments, step and settings."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        save_weights(folder, CHECKPOINT, tensors, {"step": self.step, "settings": self.identity()})

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in ``folder``; :class:`UserError` if it is not of this very run."""
        tensors, metadata = load_weights(folder, CHECKPOINT)
        # A setting younger than the checkpoint had its default's meaning when that was written.
        before, now = asdict(TrainDiffusionConfig()) | metadata["settings"], self.identity()
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise UserError(f"cannot resume {folder}: {', '.join(changed)} differ from its settings")
        load_into(self.network, _part(tensors, "network."), folder)
        load_into(self.ema, _part(tensors, "ema."), folder)
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                key: (value if key == "step" else value.to(parameter.device))
                for key in ("step", "exp_avg", "exp_avg_sq")
                if (value := tensors.get(f"adam.{key}.{name}")) is not None
            }
        self.step = int(metadata["step"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
