"""``StepDropPipeline``: a diffusers pipeline in which a learned policy decides, image by image.

    pipeline = StepDropPipeline.of(load_model("digits"), load_policy(folder))
    images = pipeline(batch_size=16, target_nfe=5).images

Saved with ``save_pretrained`` it holds the U-Net, its scheduler and the policy; nothing in it is unpickled.
Shapes: B = images asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

from agents.policy import LearnedPolicy
from envs.errors import UserError
from envs.philox import MAX_SEED, Role
from envs.registry import unknown_name
from stepdrop_rl.data import to_uint8
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.integrations.scheduler import StepDropScheduler
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import Model, image_shape
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.pricing import settled_price
from stepdrop_rl.solvers import make_solver

_POLICY = "policy"
_OUTPUT_TYPES = ("pil", "np")
_PRICE_SEED = 0  # of the validation noise: a budget's price does not depend on who asked for it first


@dataclass
class StepDropPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Images (PIL, or (B, H, W, C) in [0, 1]) and the network evaluations that each took, (B,)."""

    images: list[Image.Image] | NDArray[np.float32]
    nfe: list[int]


class StepDropPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A U-Net whose policy knows when to call it.

    Args:
        unet: The network.
        scheduler: Its noise schedule and prediction type; the times are the policy's.
    """

    def __init__(self, unet: Any, scheduler: StepDropScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.policy = None

    @property
    def policy(self) -> LearnedPolicy | None:
        """Who decides; None until it is set."""
        return self._policy

    @policy.setter
    def policy(self, policy: LearnedPolicy | None) -> None:
        self._policy = policy
        self._prices: dict[float, float] = {}  # by mean NFE: finding one draws a thousand images

    @classmethod
    def of(cls, model: Model, policy: LearnedPolicy) -> StepDropPipeline:
        """The pipeline of one of our models and a policy trained for it."""
        if policy.info.model_hash != model.hash:
            raise UserError("this policy was trained for another model")
        scheduler = StepDropScheduler.of(model, policy.info.times, policy.info.solver)
        pipeline = cls(model.denoiser.network, scheduler)
        pipeline.policy = policy
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Also write the policy."""
        super().save_pretrained(save_directory, **others)
        if self.policy is not None:
            save_policy(Path(save_directory) / _POLICY, self.policy)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> StepDropPipeline:
        """Also read the policy, from a local folder."""
        pipeline: StepDropPipeline = super().from_pretrained(pretrained_model_name_or_path, **others)
        pipeline.policy = load_policy(Path(pretrained_model_name_or_path) / _POLICY)
        return pipeline

    def __call__(
        self,
        batch_size: int = 1,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        target_nfe: float | None = None,
        price: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> StepDropPipelineOutput | tuple[Any, ...]:
        """Draw images.

        Args:
            batch_size: How many.
            generator: Draws the seed.
            seed: Image i of a seed is always the same (default: 0).
            target_nfe: Mean evaluations per image to spend at most (default: the policy's own, else 5).
            price: Price of an evaluation, instead.
            output_type: "pil" or "np".
            return_dict: Else a tuple of the output's fields.
        """
        if self.policy is None:
            raise UserError("the pipeline has no policy: make it by StepDropPipeline.of")
        if output_type not in _OUTPUT_TYPES:
            raise unknown_name("output_type", output_type, _OUTPUT_TYPES)
        if price is not None and target_nfe is not None:
            raise UserError("give either price or target_nfe, not both")
        own_seed = _seed(seed, generator)
        if price is None:
            price = self._price(self.policy, target_nfe or self.policy.info.target_nfe or 5.0)
        engine = self._engine(self.policy, own_seed, Role.EVALUATION)
        samples = engine.sample(self.policy, batch_size, price=price)
        pixels = to_uint8(samples.images).permute(0, 2, 3, 1).numpy()
        images: list[Image.Image] | NDArray[np.float32]
        if output_type == "np":
            images = (pixels / 255).astype(np.float32)
        else:
            images = [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]
        output = StepDropPipelineOutput(images=images, nfe=samples.nfe.tolist())
        return output if return_dict else output.to_tuple()

    def _price(self, policy: LearnedPolicy, nfe: float) -> float:
        """The price at which the policy spends ``nfe`` evaluations per image, found once."""
        if nfe not in self._prices:
            engine = self._engine(policy, _PRICE_SEED, Role.VALIDATION)
            self._prices[nfe] = settled_price(policy, engine, nfe)
        return self._prices[nfe]

    def _engine(self, policy: LearnedPolicy, seed: int, role: Role) -> Engine:
        network, trained = self.unet.eval(), self.scheduler.schedule
        denoiser = NetworkDenoiser(
            network,
            NoiseSchedule(
                trained.name, trained.num_train_timesteps, self.device, alpha_bar=trained.alpha_bar
            ),
            prediction=self.scheduler.config.prediction_type,
            shape=image_shape(network),
        )
        assert policy.times is not None
        return Engine(
            denoiser=denoiser,
            solver=make_solver(policy.info.solver),
            times=policy.times,
            seed=seed,
            role=role,
            projection=policy.projection,
        )


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    """The seed that is given, or that the generator draws; 0 without either."""
    if generator is None:
        return 0 if seed is None else seed
    if seed is not None:
        raise UserError("give either seed or generator, not both")
    if not isinstance(generator, torch.Generator):
        raise UserError("generator must be one torch.Generator: image i of it is the same in any batch")
    return int(torch.randint(MAX_SEED + 1, (), generator=generator, device=generator.device))
