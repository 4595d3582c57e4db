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
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

from agents.policy import LearnedPolicy
from envs.errors import UserError
from envs.philox import Role
from stepdrop_rl.data import to_uint8
from stepdrop_rl.engine import Engine
from stepdrop_rl.integrations.scheduler import StepDropScheduler
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import Model
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.pricing import price_for
from stepdrop_rl.solvers import make_solver

_POLICY = "policy"


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
        self.policy: LearnedPolicy | None = None

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
        seed: int = 0,
        target_nfe: float | None = None,
        price: float | None = None,
        output_type: str = "pil",
    ) -> StepDropPipelineOutput:
        """Draw images.

        Args:
            batch_size: How many.
            seed: Image i of a seed is always the same.
            target_nfe: Mean evaluations per image to spend at most (default: the policy's own, else 5).
            price: Price of an evaluation, instead.
            output_type: "pil" or "np".
        """
        if self.policy is None:
            raise UserError("the pipeline has no policy: make it by StepDropPipeline.of")
        if price is not None and target_nfe is not None:
            raise UserError("give either price or target_nfe, not both")
        if price is None:
            wanted = target_nfe or self.policy.info.target_nfe or 5.0
            price = price_for(self.policy, self._engine(seed, Role.VALIDATION), wanted).price
        samples = self._engine(seed, Role.EVALUATION).sample(self.policy, batch_size, price=price)
        pixels = to_uint8(samples.images).permute(0, 2, 3, 1).numpy()
        nfe = samples.nfe.tolist()
        if output_type != "pil":
            return StepDropPipelineOutput(images=(pixels / 255).astype(np.float32), nfe=nfe)
        pictures = [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]
        return StepDropPipelineOutput(images=pictures, nfe=nfe)

    def _engine(self, seed: int, role: Role) -> Engine:
        assert self.policy is not None
        network: Any = self.unet
        inner = getattr(network, "unet", network)  # where pixels are unshuffled first
        folds = 1 if inner is network else network.config.factor
        size = inner.config.sample_size * folds
        denoiser = NetworkDenoiser(
            self.unet.eval(),
            self.scheduler.schedule,
            prediction=self.scheduler.config.prediction_type,
            shape=(inner.config.in_channels // folds**2, size, size),
        )
        assert self.policy.times is not None
        return Engine(
            denoiser=denoiser,
            solver=make_solver(self.policy.info.solver),
            times=self.policy.times,
            seed=seed,
            role=role,
            projection=self.policy.projection,
        )
