"""Skip-aware training: the network sees what its own jumps make of an image, not only noised data.

A sampler that skips from t to s feeds the network x_s = jump(x_t), which carries the error of x0_hat(x_t);
plain training never shows such inputs. Here x_t is noised data, x_s the model's own jump from it, and the
target is the noise that leads from x_s back to the clean image:

    eps_s = (x_s − α_s·x0)/σ_s        (of v likewise: v = α_s·eps_s − σ_s·x0).

Shapes: B = images (B, C, H, W); P = jumps, (P, 2) float64 rows (t, s), t >= s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents import BASELINES
from agents.base import Agent, Budget
from agents.planned import Planned
from envs.philox import Role
from stepdrop_rl.arena import make_arena
from stepdrop_rl.config import AgentChoice, DataConfig, SkipAwareConfig
from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.policies import check_range, given
from stepdrop_rl.solvers.base import data_jump

VISIT_IMAGES = 512
NUM_DECISIONS = 24


def jumps_of(evaluated: Tensor, times: Tensor) -> Tensor:
    """The jumps between evaluations, (P, 2), of samples that were evaluated at (M, N) of the (N,) times.

    The first evaluation of a sample counts as the jump (t, t): it sees noised data.
    """
    jumps = []
    for row in evaluated:
        visited = times[row]
        jumps.append(torch.stack((torch.cat((visited[:1], visited[:-1])), visited), dim=1))
    return torch.cat(jumps)


def visited_jumps(config: SkipAwareConfig, dataset: str, schedule: NoiseSchedule) -> Tensor:
    """The jumps, (P, 2), that ``config.policy`` makes.

    A fixed schedule says them itself (between the default ends); any other policy is watched as it draws
    images with the data set's model, on validation noise.

    Raises:
        UserError: There is no such policy, or it needs a model and there is none.
    """
    start, end = default_ends(schedule)
    agent: Agent | None = None
    if config.policy in BASELINES:
        agent = BASELINES.load(config.policy)(Budget(config.nfe, start, end, NUM_DECISIONS, schedule))
    else:
        plan = agent = given(config.policy)
        if plan is not None:
            check_range(plan, config.policy, schedule)
    if agent is not None and agent.times is not None:
        if isinstance(agent, Planned):
            coins = (torch.arange(VISIT_IMAGES, dtype=torch.float64) + 0.5) / VISIT_IMAGES
            return jumps_of(agent.plan(torch.arange(VISIT_IMAGES), coins), agent.times)
        return jumps_of(torch.ones(1, len(agent.times), dtype=torch.bool), agent.times)
    choice = AgentChoice(policy=config.policy, target_nfe=config.nfe, data=DataConfig(name=dataset))
    arena, (watched, price) = make_arena(choice, blocks=2)
    drawn = arena.engine(watched, Role.VALIDATION).sample(watched, VISIT_IMAGES, price=price)
    return jumps_of(drawn.evaluated, drawn.times)


@torch.no_grad()
def own_jump(
    denoiser: Denoiser, schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_s, the model's own DDIM jump of ``x_t`` to ``s``, and the eps that leads back to ``x0``."""
    eps, _ = denoiser(x_t, t)
    alpha, sigma = schedule.alpha_sigma(t)
    x0_hat = ((x_t - image_scale(sigma, x_t) * eps) / image_scale(alpha, x_t)).clamp(-1, 1)
    x_s = data_jump(schedule, x_t, t, s, x0_hat)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    return x_s, (x_s - image_scale(alpha_s, x0) * x0) / image_scale(sigma_s, x0)
