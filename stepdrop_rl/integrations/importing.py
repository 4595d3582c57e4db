"""Unconditional U-Nets of diffusers as models and environments of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from envs.errors import UserError
from envs.single import StepDropEnv
from stepdrop_rl.config import EnvConfig, Prediction, ScheduleConfig
from stepdrop_rl.data import SHAPES
from stepdrop_rl.diffusion import SCHEDULES, NoiseSchedule
from stepdrop_rl.environment import make_world
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.integrations.noise import alpha_bar_of, completed
from stepdrop_rl.models.unet import Model, ModelInfo, assemble, image_shape, load_network
from stepdrop_rl.weights import PathLike, read_json

_PARTS = ("unet", "scheduler")
_NOISE = ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "trained_betas")


def model_from_diffusers(
    path: PathLike,
    *,
    dataset: str = "",
    device: torch.device | str = "cpu",
    precision: str = "auto",
    pad_to: int | None = None,
    compiled: bool = False,
) -> Model:
    """Return the model of a saved pipeline, such as a DDPMPipeline or one with our own scheduler.

    Its grid gets the default ends.

    Args:
        path: The pipeline's folder (``model_index.json``).
        dataset: Our name of the data set that it learned from, if rewards or judges need it.
        device: Where it computes.
        precision: Of the network; auto is bfloat16 on CUDA, and for large networks on CPUs that have it.
        pad_to: See :class:`~stepdrop_rl.models.denoiser.NetworkDenoiser`.
        compiled: As of :func:`~stepdrop_rl.models.unet.load_model`.

    Raises:
        UserError: It is no unconditional pixel-space pipeline, its noise schedule is none of ours, or its
            images are not those of ``dataset``.
    """
    folder = Path(path)
    index = read_json(folder / "model_index.json")
    others = [
        name for name, part in index.items() if isinstance(part, list) and name not in _PARTS and any(part)
    ]
    if others:
        raise UserError(f"{folder} is no pipeline of a U-Net alone: it also holds {', '.join(others)}")
    # Some pipelines keep all files in one folder.
    unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in _PARTS)
    info = _read_info(scheduler / "scheduler_config.json", dataset or folder.name)
    network = load_network(unet, device)
    _require_fit(image_shape(network), dataset, folder)
    return assemble(network, info, device, precision=precision, pad_to=pad_to, compiled=compiled)


def _read_info(file: Path, dataset: str) -> ModelInfo:
    """What a scheduler's configuration says, where we have the mathematics for it."""
    prediction = read_json(file).get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise UserError(f"{file}: networks that predict '{prediction}' are not supported")
    schedule = _schedule(file)
    t_start, t_end = default_ends(NoiseSchedule(schedule.name, schedule.num_train_timesteps))
    return ModelInfo(dataset=dataset, prediction=prediction, schedule=schedule, t_start=t_start, t_end=t_end)


def _schedule(file: Path) -> ScheduleConfig:
    """Our name of the noise schedule that is the same to a thousandth at every time."""
    try:
        told: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": "linear"}
        told |= completed(read_json(file))
        alpha_bar = alpha_bar_of(**{key: told[key] for key in _NOISE if key in told})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    steps = int(told["num_train_timesteps"])
    for name in SCHEDULES:
        if torch.allclose(NoiseSchedule(name, steps).alpha_bar, alpha_bar, rtol=1e-3, atol=0):
            return ScheduleConfig(name=name, num_train_timesteps=steps)
    found = "trained_betas"
    if told.get("trained_betas") is None:
        found = f"{told['beta_schedule']} from {told.get('beta_start')} to {told.get('beta_end')}"
    raise UserError(
        f"{file}: the noise schedule '{found}' in {steps} timesteps is none of ours: squaredcos_cap_v2, or "
        f"linear from {0.1 / steps:g} to {20 / steps:g}"
    )


def _require_fit(shape: tuple[int, int, int], dataset: str, folder: Path) -> None:
    """Raise :class:`UserError` for a network of other images than the data set's."""
    if dataset not in SHAPES:
        return
    channels, size = SHAPES[dataset]
    expected = (channels, size or shape[1], size or shape[1])
    if shape != expected:
        theirs, ours = ("×".join(str(n) for n in s) for s in (shape, expected))
        raise UserError(
            f"{folder} draws images of {theirs}, those of '{dataset}' are {ours}: another --data.name?"
        )


def from_diffusers(
    path: PathLike,
    *,
    dataset: str = "",
    device: torch.device | str = "cpu",
    render_mode: str | None = None,
    **settings: Any,
) -> StepDropEnv:
    """Wrap a diffusers pipeline's U-Net as a Gymnasium environment.

    Args:
        path: Folder of the pipeline.
        dataset: Our name of its data set; without it the reward is the pixel distance to the teacher.
        device: Where it computes.
        render_mode: None or "rgb_array".
        settings: Of :class:`~stepdrop_rl.config.EnvConfig`.
    """
    if not dataset:
        settings.setdefault("reward", {"pixel": 1.0})
    model = model_from_diffusers(path, dataset=dataset, device=device)
    return StepDropEnv(make_world(EnvConfig(**settings), model=model).core(1), render_mode)
