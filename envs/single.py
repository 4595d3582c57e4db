"""One sample as a ``gymnasium.Env``."""

from __future__ import annotations

from typing import Any, ClassVar, SupportsInt

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from envs.mdp import StepDropCore
from envs.shell import (
    METADATA,
    Frame,
    frame,
    fresh_seed,
    information,
    seeds_tensor,
    single_action_space,
    single_observation_space,
    to_numpy,
)

Observation = NDArray[np.float32]


class StepDropEnv(gymnasium.Env[Observation, np.int64]):
    """A diffusion model draws one image; at every time of a grid the agent skips or evaluates the network.

    ## Action Space
    ``Discrete(2)``: 0 skips this grid point, 1 evaluates the network here. Skipping costs nothing and
    changes nothing but the position: the sample is carried to its next evaluation in one jump.

    ## Observation Space
    ``Box`` of float32, shape (10 + F,):

    | Num | Observation | Min | Max | Unit |
    |---|---|---|---|---|
    | 0 | position on the grid: index/(N − 1) | 0 | 1 | share of the grid |
    | 1 | half log-SNR here | 0 | 1 | share of the grid's range |
    | 2 | half log-SNR gained since the last evaluation | 0 | 1 | share of the grid's range |
    | 3 | network evaluations so far | 0 | 1 | share of N |
    | 4 | price of an evaluation, log10/2 | −3 | 1 | half decades of reward |
    | 5 | root mean square of the last predicted noise | 0 | 4 | deviations of the noise |
    | 6 | RMS change of the clean estimate between the last two evaluations | 0 | 2 | pixels in [−1, 1] |
    | 7 | that change per unit of half log-SNR | 0 | 4 | pixels per nat |
    | 8 | RMS distance of the order-1 and the order-2 jump to here | 0 | 2 | pixels in [−1, 1] |
    | 9 | share of the clean estimate's pixels that needed clipping | 0 | 1 | share of pixels |
    | 10… | projected middle features of the network, if asked for | −10 | 10 | deviations |

    Entries 6 to 8 are 0 after the first evaluation.

    ## Rewards
    Φ(after) − Φ(before) − price·[evaluated], with Φ the quality of the current clean estimate. With γ = 1 the
    return is Φ(end) − Φ(after the first evaluation) − price·(NFE − 1). Φ is scaled so that the full
    trajectory gains 1 on average.

    ## Starting State
    An image's noise and a price, both drawn from (seed, episode); the first grid point is evaluated already.

    ## Episode End
    Termination after the decision at the last grid point (N − 1 decisions). Never truncated.

    ## Information
    ``nfe`` evaluations so far, ``quality`` Φ, ``price``, ``image`` the noise's number.

    ## Arguments
    ``gymnasium.make("stepdrop_rl:StepDrop-v0", model="digits", price=0.02, num_decisions=24, ...)``: the
    settings of ``EnvConfig``, and ``render_mode="rgb_array"``: the sample, its clean estimate, its timeline.
    """

    metadata: ClassVar[dict[str, Any]] = METADATA  # type: ignore[misc]

    def __init__(self, core: StepDropCore, render_mode: str | None = None) -> None:
        assert core.walk.process.num_rows == 1
        self.core = core
        self.render_mode = render_mode
        self.observation_space = single_observation_space(core)  # type: ignore[assignment]
        self.action_space = single_action_space()
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the next episode; an explicit seed begins that seed's first one and forgets the rest."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            chosen = fresh_seed(self.np_random) if seed is None else seed
            self.core.seed(self.core.rows, seeds_tensor(self.core, [chosen]))
            self.core.reset(chosen)
            self._seeded = True
        self.core.begin(self.core.rows)
        return self._observation(), self._info()

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Skip (0) or evaluate (1)."""
        step = self.core.step(self.core.rows, torch.tensor([int(action)], device=self.core.rows.device))
        return self._observation(), float(step.reward), bool(step.terminated), False, self._info()

    def render(self) -> Frame | None:  # type: ignore[override]
        """The sample, its clean estimate and its timeline: (H, W, 3) uint8."""
        return frame(self.core, 0) if self.render_mode == "rgb_array" else None

    def _observation(self) -> Observation:
        return to_numpy(self.core.walk.observe(self.core.rows))[0]

    def _info(self) -> dict[str, Any]:
        return {key: values[0] for key, values in information(self.core, self.core.rows).items()}
