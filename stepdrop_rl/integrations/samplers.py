"""diffusers' own schedulers as rivals: on regular grids, from our noise, every network call counted.

The schedulers that take times of our choice get even ones between the model's ends, rounded; the others keep
their own, from T − 1 down.

Shapes: B images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from envs.philox import Role, Stream, normal
from envs.registry import unknown_name
from stepdrop_rl.models.unet import Model

# Clean estimates clipped to [−1, 1], as ours are: with a cosine schedule the first ones are far outside.
_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}

# Name → scheduler class, its settings, and the steps that K network calls allow.
SAMPLERS: dict[str, tuple[type[Any], dict[str, Any], Callable[[int], int]]] = {
    "diffusers:ddim": (DDIMScheduler, {}, lambda k: k),
    "diffusers:pndm": (PNDMScheduler, {"skip_prk_steps": True}, lambda k: k - 1),
    "diffusers:deis": (DEISMultistepScheduler, _CLIPPED, lambda k: k),
    "diffusers:dpm++2m": (DPMSolverMultistepScheduler, _CLIPPED, lambda k: k),
    "diffusers:dpm++2s": (DPMSolverSinglestepScheduler, _CLIPPED | {"lower_order_final": True}, lambda k: k),
    "diffusers:unipc": (UniPCMultistepScheduler, _CLIPPED, lambda k: k),
    "diffusers:heun": (HeunDiscreteScheduler, {"clip_sample": True}, lambda k: (k + 1) // 2),
}


_TAKES_TIMES = ("diffusers:dpm++2m", "diffusers:dpm++2s", "diffusers:heun")


def betas(alpha_bar: Tensor) -> Any:
    """β of a noise schedule, as diffusers wants it."""
    before = torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
    return (1 - alpha_bar / before).cpu().float().numpy()


@torch.no_grad()
def draw(
    name: str, model: Model, nfe: int, num_images: int, *, seed: int, batch_size: int = 256
) -> tuple[Tensor, int]:
    """Return images 0 … num_images − 1 of the evaluation noise and the network calls that each took.

    At most ``nfe``; :class:`UserError` for an unknown sampler.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    kind, settings, steps_of = SAMPLERS[name]
    steps = steps_of(nfe)
    denoiser = model.denoiser
    device = denoiser.schedule.device
    parts, calls = [], 0
    for ids in torch.arange(num_images, device=device).split(batch_size):
        scheduler = kind(
            trained_betas=betas(denoiser.schedule.alpha_bar),
            prediction_type=model.info.prediction,
            **settings,
        )
        if name in _TAKES_TIMES:
            even = torch.linspace(model.info.t_start, model.info.t_end, max(steps, 1))
            scheduler.set_timesteps(timesteps=even.round().long().tolist())
        else:
            scheduler.set_timesteps(max(steps, 1))
        x = normal(denoiser.shape, seed=seed, role=Role.EVALUATION, stream=Stream.INITIAL, image=ids)
        x = x * float(scheduler.init_noise_sigma)
        calls = 0
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t)
            output = denoiser.raw(shown, t.to(device).expand(len(shown)))
            x = scheduler.step(output, t, x, return_dict=False)[0]
            calls += 1
        parts.append(x.float().clamp(-1, 1).cpu())
    return torch.cat(parts), calls
