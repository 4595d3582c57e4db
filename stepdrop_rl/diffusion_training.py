"""The training loop's mathematics and state: batches, step, EMA, checkpoint. No printing, no tracking.

A step's images, times and noise are functions of (seed, step, index in the batch), dropout's masks of
(seed, step, process): a resumed run goes through the same numbers, and several processes, each with its part
of every batch, through those of one. Shapes: B = batch; images (B, C, H, W).
"""

from __future__ import annotations

import copy
import functools
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
from stepdrop_rl.device import autocast_type
from stepdrop_rl.diffusion import NoiseSchedule, q_sample
from stepdrop_rl.losses import LOSSES, Batch, Loss
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.parallel import World
from stepdrop_rl.skip_aware import own_jump, visited_jumps
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
    "ends_samples",
    "ends_judge",
    "weights",
    "compile",
    "deterministic",
)


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
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
        world: The processes that share every batch.
    """

    def __init__(
        self,
        config: TrainDiffusionConfig,
        network: nn.Module,
        images: Tensor,
        schedule: NoiseSchedule,
        world: World | None = None,
    ) -> None:
        self.config = config
        self.network = network
        self.schedule = schedule
        self.world = world or World()
        device = schedule.device
        on_cuda = device.type == "cuda"
        self.images = images.to(device)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.loss: Loss = LOSSES.load(config.loss.name)
        self.autocast = autocast_type(config.precision, device)
        self.jumps: Tensor | None = None
        if config.skip_aware.share > 0:
            self.jumps = visited_jumps(config.skip_aware, config.data.name, schedule).to(device)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        # Tensor cores want channels last; on CPUs, measured, it is slower.
        self._layout = torch.channels_last if on_cuda else torch.contiguous_format
        network.to(memory_format=self._layout)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=on_cuda
        )
        self.step = 0
        self._forward: nn.Module = network
        if config.compile == "always" or (config.compile == "auto" and on_cuda):
            self._forward = torch.compile(network)  # type: ignore[assignment]
        if self.world.size > 1:
            if config.batch_size % self.world.size:
                raise UserError(
                    f"batch_size ({config.batch_size}) must be a multiple of the {self.world.size} processes"
                )
            self._forward = nn.parallel.DistributedDataParallel(self._forward)

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The averaged network as samplers see it."""
        channels, height, width = self.images.shape[1:]
        return NetworkDenoiser(
            self.ema,
            self.schedule,
            prediction=self.config.prediction,
            shape=(channels, height, width),
            autocast=self.autocast,
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at the declared last step."""
        c = self.config
        if step < c.warmup_steps:
            return c.learning_rate * (step + 1) / c.warmup_steps
        done = (step - c.warmup_steps) / max(c.steps - c.warmup_steps, 1)
        return c.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean images, their times, their noise, and x_t: functions of (seed, step, index).

        With several processes: this one's part of them.
        """
        c = self.config
        mine = self.world.share(c.batch_size)
        chosen, examples = (
            part[mine.start : mine.stop]
            for part in batch_indices(len(self.images), c.batch_size, step, c.seed)
        )
        examples = examples.to(self.images.device)
        role = Role.DIFFUSION_TRAINING
        u = uniform(4, seed=c.seed, role=role, stream=Stream.DATA_TIME, image=examples)
        x0 = to_float(self.images[chosen.to(self.images.device)])
        if c.flip:
            x0 = torch.where((u[:, 1] < 0.5).reshape(-1, 1, 1, 1), x0.flip(-1), x0)
        t = u[:, 0] * (self.schedule.num_train_timesteps - 1)
        eps = normal(tuple(x0.shape[1:]), seed=c.seed, role=role, stream=Stream.DATA_NOISE, image=examples)
        if self.jumps is None:
            return x0, t, eps, q_sample(self.schedule, x0, t, eps)
        aware = u[:, 2] < c.skip_aware.share
        departure, arrival = self.jumps[(u[:, 3] * len(self.jumps)).long()].unbind(1)
        x_t = q_sample(self.schedule, x0, torch.where(aware, departure, t), eps)
        rows = aware.nonzero().squeeze(1)
        if len(rows):
            x_t[rows], eps[rows] = own_jump(
                self.denoiser, self.schedule, x0[rows], x_t[rows], departure[rows], arrival[rows]
            )
        return x0, torch.where(aware, arrival, t), eps, x_t

    def train_step(self) -> dict[str, float | Tensor]:
        """One optimiser step; returns its loss (this process's) and gradient norm: no synchronisation."""
        c = self.config
        x0, t, eps, x_t = self.batch(self.step)
        device = self.images.device.type
        # Dropout's masks, resumed or not: every process has its own.
        torch.manual_seed((c.seed * _STEPS_PER_SEED + self.step) * self.world.size + self.world.rank)
        with torch.autocast(device, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            output = self.forward(x_t, t)
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

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network that learns says, compiled and shared as it is trained."""
        output: Tensor = self._forward(x_t.contiguous(memory_format=self._layout), t.float()).sample
        return output

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
