"""From settings to the decision problem: model, solver, teacher bank and reward features put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from envs.dual import MovingPrice
from envs.errors import UserError
from envs.mdp import StepDropCore
from envs.observation import Projection
from envs.philox import Role
from envs.registry import unknown_name
from envs.rewards import REWARDS
from envs.rewards.base import Ground, WeightedQuality
from envs.single import StepDropEnv
from envs.vector import StepDropVectorEnv
from stepdrop_rl.config import DataConfig, EnvConfig
from stepdrop_rl.data import load as load_data
from stepdrop_rl.data import to_float
from stepdrop_rl.device import resolve_device
from stepdrop_rl.features import check_features, fit_projection
from stepdrop_rl.metrics.base import RewardExtractor
from stepdrop_rl.metrics.reference import load_reward
from stepdrop_rl.models.unet import Model, load_model
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.teacher import TeacherBank, load_bank

DEFAULT_MODEL = "digits"
NUM_REAL = 4096  # real images that rewards compare with, at most: every evaluation looks at all of them


def decision_grid(model: Model, num_decisions: int) -> Tensor:
    """N times evenly spaced between the model's ends; :class:`UserError` if N exceeds T."""
    last = model.info.schedule.num_train_timesteps
    if num_decisions > last:
        raise UserError(f"a grid of {num_decisions} decisions is larger than the model's T = {last}")
    return torch.linspace(model.info.t_start, model.info.t_end, num_decisions, dtype=torch.float64)


@dataclass(frozen=True)
class World:
    """Everything that environments of the same settings share.

    Args:
        model: The diffusion model.
        config: Settings of the decision problem.
        times: (N,) decision grid.
        bank: Noises and the full trajectory's results.
        ground: What rewards stand on.
        projection: Of the network's features, or None.
    """

    model: Model
    config: EnvConfig
    times: Tensor
    bank: TeacherBank
    ground: Ground
    projection: Projection | None

    def core(self, num_rows: int) -> StepDropCore:
        """A batch of trajectories."""
        process = DiffusionProcess(
            self.model.denoiser,
            make_solver(self.config.solver),
            num_rows=num_rows,
            seed=self.bank.seed,
            role=Role.POLICY_TRAINING,
            projection=self.projection,
        )
        config, moving = self.config, None
        if config.target_nfe is not None:
            start = config.prices[0]
            moving = MovingPrice(config.target_nfe, start=start, step=config.price_step, batch=num_rows)
        return StepDropCore(
            process,
            self.times,
            WeightedQuality(self.config.reward, self.ground, num_rows),
            num_images=len(self.bank.teacher),
            prices=self.config.prices,
            moving=moving,
        )


def data_of(model: Model, data: DataConfig | None = None) -> DataConfig:
    """Where the images are that ``model`` learned from: ``data``, with the model's own set and size."""
    return replace(data or DataConfig(), name=model.info.dataset, size=model.denoiser.shape[-1])


def make_world(config: EnvConfig, *, model: Model, data: DataConfig | None = None) -> World:
    """Put the decision problem of ``model`` together; ``data`` says where its images lie."""
    make_solver(config.solver)  # names are checked before anything is computed
    for name in config.reward:
        REWARDS[name]
    device = model.denoiser.schedule.device
    times = decision_grid(model, config.num_decisions).to(device)
    if config.shows_features:
        check_features(model.denoiser.feature_widths, config.feature_names, config.num_features)
    shown = _shown(config, model, data)  # images that are not there are noticed before anything is computed
    bank = load_bank(model, config.solver, steps=config.teacher_steps, size=config.bank_size, device=device)
    ground = _ground(config, bank, shown)
    projection = None
    if config.shows_features:
        projection = fit_projection(
            model.denoiser,
            bank,
            times,
            features=config.feature_names,
            kind=config.projection,
            num=config.num_features,
        )
    return World(model, config, times, bank, ground, projection)


def _shown(config: EnvConfig, model: Model, data: DataConfig | None) -> tuple[RewardExtractor, Tensor] | None:
    """The rewards' extractor and real images; None where no reward looks at them."""
    if not any(REWARDS.load(name).needs_features for name in config.reward):
        return None
    source, device = data_of(model, data), model.denoiser.schedule.device
    return load_reward(config.extractor, source, device), real_images(source, NUM_REAL)


def real_images(data: DataConfig, count: int) -> Tensor:
    """That many images to learn from, (M, C, H, W) uint8, chosen by chance; all, where there are fewer."""
    images = load_data(data, "train").images
    if len(images) <= count:
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]


def _ground(config: EnvConfig, bank: TeacherBank, shown: tuple[RewardExtractor, Tensor] | None) -> Ground:
    """What the rewards stand on."""
    device = bank.teacher.device
    features: Callable[[Tensor], Tensor] = _nothing
    real = teacher_features = torch.empty(0, 0, device=device)
    views: tuple[int, ...] = ()
    if shown is not None:
        extractor, images = shown
        features, views = extractor, extractor.views
        with torch.no_grad():
            real = _in_batches(features, to_float(images).to(device))
            teacher_features = _in_batches(features, bank.teacher)
    return Ground(
        features=features,
        real=real,
        teacher=bank.teacher,
        teacher_features=teacher_features,
        first=bank.first,
        prices=config.prices,
        price_bins=config.price_bins,
        views=views,
    )


def _nothing(x: Tensor) -> Tensor:
    return x.new_empty(len(x), 0)


def _in_batches(extractor: Callable[[Tensor], Tensor], images: Tensor, size: int = 512) -> Tensor:
    return torch.cat([extractor(part) for part in images.split(size)])


@lru_cache(maxsize=4)
def _shared_world(model: str, device: str, settings: tuple[tuple[str, Any], ...]) -> World:
    """256 single environments share one network and one bank."""
    values: dict[str, Any] = {k: dict(v) if k == "reward" else v for k, v in settings}
    config = EnvConfig(**values)
    return make_world(config, model=load_model(model, resolve_device(device)))


def _world_from(model: str, device: str, settings: Mapping[str, Any]) -> World:
    known = {field.name for field in fields(EnvConfig)}
    for name in settings:
        if name not in known:
            raise unknown_name("environment setting", name, known)
    frozen = {k: tuple(sorted(v.items())) if k == "reward" else v for k, v in settings.items()}
    return _shared_world(model, device, tuple(sorted(frozen.items())))


def make_single(
    model: str = DEFAULT_MODEL, device: str = "cpu", render_mode: str | None = None, **settings: Any
) -> StepDropEnv:
    """``gymnasium.make("stepdrop_rl:StepDrop-v0", ...)``; settings are those of ``EnvConfig``."""
    return StepDropEnv(_world_from(model, device, settings).core(1), render_mode)


def make_vector(
    num_envs: int = 1,
    model: str = DEFAULT_MODEL,
    device: str = "cpu",
    render_mode: str | None = None,
    autoreset_mode: str = "NextStep",
    **settings: Any,
) -> StepDropVectorEnv:
    """``gymnasium.make_vec("stepdrop_rl:StepDrop-v0", num_envs=..., ...)``."""
    core = _world_from(model, device, settings).core(num_envs)
    return StepDropVectorEnv(core, autoreset_mode, render_mode)
