"""Unconditional U-Nets of diffusers as models and environments of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from envs.errors import UserError
from envs.single import StepDropEnv
from stepdrop_rl.config import EnvConfig, ScheduleConfig
from stepdrop_rl.device import autocast_type
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.environment import make_world
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import Model, ModelInfo
from stepdrop_rl.weights import PathLike, content_hash, read_json

_OURS = {"linear": "linear", "squaredcos_cap_v2": "cosine"}


def model_from_diffusers(path: PathLike, *, dataset: str = "", device: torch.device | str = "cpu") -> Model:
    """Return the model of a pipeline's folder (``unet/`` and ``scheduler/``), such as a DDPMPipeline's.

    Args:
        path: The folder.
        dataset: Our name of the data set that it learned from, if rewards or judges need it.
        device: Where it computes.

    Raises:
        UserError: It is no unconditional pixel-space pipeline, or its noise schedule is none of ours.
    """
    folder = Path(path)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    info = ModelInfo(dataset=dataset or folder.name, t_start=0.0, t_end=0.0, **_noise(scheduler, folder))
    try:
        network, loading = UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if loading["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(loading['missing_keys']))}")
    except Exception as error:  # many kinds, for many damages
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / 'unet'} does not hold a UNet2DModel: {reason}") from None
    network = network.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule(info.schedule.name, info.schedule.num_train_timesteps, device)
    t_start, t_end = default_ends(schedule)
    info = ModelInfo(**{**vars(info), "t_start": t_start, "t_end": t_end})
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    denoiser = NetworkDenoiser(
        network,
        schedule,
        prediction=info.prediction,
        shape=(network.config.in_channels, height, width),
        autocast=autocast_type("auto", device),
    )
    return Model(denoiser, info, content_hash(dict(network.state_dict())))


def _noise(scheduler: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Noise schedule and prediction type, where they are ones that we have."""
    name, steps = scheduler.get("beta_schedule"), int(scheduler.get("num_train_timesteps", 1000))
    scaled = [scheduler.get(key, 0.0) * steps / 1000 for key in ("beta_start", "beta_end")]
    if name == "linear" and not all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(scaled, (1e-4, 2e-2), strict=True)
    ):
        name = f"linear from {scheduler.get('beta_start')} to {scheduler.get('beta_end')}"
    if scheduler.get("trained_betas") is not None or name not in _OURS:
        raise UserError(f"{folder}: the noise schedule '{name}' is not one of {', '.join(_OURS)}")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{folder}: networks that predict '{prediction}' are not supported")
    return {"schedule": ScheduleConfig(name=_OURS[name], num_train_timesteps=steps), "prediction": prediction}


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
