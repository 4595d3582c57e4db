"""stepdrop_rl: learn when a diffusion model needs to be evaluated.

Importing the package registers the environment, so ``gymnasium.make("stepdrop_rl:StepDrop-v0")`` works.
"""

import importlib
from typing import Any

import gymnasium

__version__ = "0.1.0"

ENVIRONMENT_ID = "StepDrop-v0"

gymnasium.register(
    id=ENVIRONMENT_ID,
    entry_point="stepdrop_rl.environment:make_single",
    vector_entry_point="stepdrop_rl.environment:make_vector",
)

_LAZY = {
    "StepDropScheduler": "stepdrop_rl.integrations.scheduler",
    "StepDropPipeline": "stepdrop_rl.integrations.pipeline",
    "PixelUnshuffledUNet": "stepdrop_rl.models.unet",
    "from_diffusers": "stepdrop_rl.integrations.importing",
}


def __getattr__(name: str) -> Any:
    """What works with diffusers, and what it looks for here when it loads a saved pipeline; on use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'stepdrop_rl' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
