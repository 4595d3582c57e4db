"""stepdrop_rl: learn when a diffusion model needs to be evaluated.

Importing the package registers the environment, so ``gymnasium.make("stepdrop_rl:StepDrop-v0")`` works.
"""

import gymnasium

__version__ = "0.1.0"

ENVIRONMENT_ID = "StepDrop-v0"

gymnasium.register(
    id=ENVIRONMENT_ID,
    entry_point="stepdrop_rl.environment:make_single",
    vector_entry_point="stepdrop_rl.environment:make_vector",
)
