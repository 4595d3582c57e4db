"""Where contenders meet: one model, one solver, one judge, one set of noise.

Shapes: M = images drawn; N = points of a contender's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from agents import BASELINES
from agents.adaptive import Adaptive, calibrated
from agents.base import Agent, Budget
from agents.fixed import FixedSchedule, whole
from agents.planned import Mixture, Planned
from agents.policy import LearnedPolicy
from envs.errors import UserError
from envs.philox import Role
from stepdrop_rl.config import AgentChoice, DataConfig
from stepdrop_rl.data import DATASETS
from stepdrop_rl.device import resolve_device
from stepdrop_rl.engine import Engine, Samples
from stepdrop_rl.environment import data_of, decision_grid
from stepdrop_rl.estimates import Clip
from stepdrop_rl.grid_ends import END_LAMS
from stepdrop_rl.metrics import (
    FeatureExtractor,
    Reference,
    default_judge,
    distance_name,
    gather,
    load_reference,
)
from stepdrop_rl.metrics.distances import frechet_distance
from stepdrop_rl.metrics.pairs import kid
from stepdrop_rl.models.unet import Model, load_model
from stepdrop_rl.parallel import World, device_of
from stepdrop_rl.policies import check_name, given, make_agent
from stepdrop_rl.pricing import settled_price
from stepdrop_rl.room import room_for
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.teacher import full_trajectory

DEFAULT_NFE = 5.0
DEFAULT_SOLVER = "multistep"
TEACHER_STEPS = 50  # of the full trajectory
TUNED = "*"  # ends the name of a fixed schedule whose last time was chosen
TUNING_IMAGES = 512


class Contender(NamedTuple):
    """An agent ready to draw: its budget is settled.

    Args:
        agent: Who decides.
        price: What an evaluation costs it (0 where it does not ask).
    """

    agent: Agent
    price: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Where contenders meet: one model, one solver, one judge, one set of noise.

    Args:
        model: The diffusion model.
        data: Where the images are that it learned from.
        solver: Reference of the solver.
        times: (N,) decision grid, for agents that bring none.
        seed: Of noise and decisions.
        batch_size: Images held at once.
        blocks: Disjoint blocks of noise.
        judge: Who judges images: an extractor that no reward knows (default: the data set's).
        mode: Learned policies take the likelier action.
        clip: How clean estimates are kept within [−1, 1].
        world: The processes that share the images.
    """

    model: Model
    data: DataConfig
    solver: str
    times: Tensor
    seed: int
    batch_size: int
    blocks: int
    judge: str | None = None
    mode: bool = False
    clip: Clip = "static"
    world: World = field(default_factory=World)

    @cached_property
    def _judging(self) -> tuple[FeatureExtractor, Reference]:
        return load_reference(self.data, self.judge or default_judge(self.data.name), self.times.device)

    @property
    def extractor(self) -> FeatureExtractor:
        """The judge's network."""
        return self._judging[0]

    @property
    def reference(self) -> Reference:
        """The real images as the judge sees them."""
        return self._judging[1]

    def engine(self, agent: Agent, role: Role = Role.EVALUATION) -> Engine:
        """An engine for ``agent``."""
        learned = isinstance(agent, LearnedPolicy)
        return Engine(
            denoiser=self.model.denoiser,
            solver=make_solver(self.solver),
            times=self.times,
            seed=self.seed,
            role=role,
            batch_size=self.batch_size,
            projection=agent.projection if isinstance(agent, LearnedPolicy) else None,
            mode=self.mode and learned,
            clip=self.clip,
        )

    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images (M, C, H, W) in the judge's features."""
        return frechet_distance(gather(images, self.extractor)[0], self.reference.statistics)

    def scores(self, features: Tensor) -> dict[str, float]:
        """Fréchet distance, under its name, and ``kid`` of images that the judge sees as (M, F)."""
        return {
            distance_name(self.extractor.name): frechet_distance(features, self.reference.statistics),
            "kid": kid(features, self.reference.cloud),
        }

    def full(self, num_samples: int) -> Tensor:
        """Images 0 … of the full trajectory, (M, C, H, W)."""
        agent = full_trajectory(self.model.info.t_start, self.model.info.t_end, TEACHER_STEPS)
        return self.engine(agent).sample(agent, num_samples).images

    def agent(self, name: str, nfe: float = DEFAULT_NFE) -> Agent:
        """The agent called ``name``; :class:`UserError` where it does not fit the model and the solver."""
        budget = budget_of(self.model, nfe, len(self.times))
        return make_agent(name, budget, model=self.model, solver=self.solver)

    def contender(self, name: str, nfe: float, price: float | None = None) -> Contender:
        """Make the agent called ``name`` spend ``nfe`` evaluations at most, or pay ``price``.

        A spacing whose name ends with ``*`` gets the last time that suits it best.
        """
        if name.endswith(TUNED):
            return self.tuned(name.removesuffix(TUNED), nfe)
        return self.settle(self.agent(name, nfe), nfe, price)

    def settle(self, agent: Agent, nfe: float, price: float | None = None) -> Contender:
        """Find the price or tolerance at which a policy spends ``nfe``; others have their budget already."""
        if isinstance(agent, Adaptive):
            engine = self.engine(agent, Role.VALIDATION)
            calibrated(agent, lambda one: float(engine.sample(one, TUNING_IMAGES).nfe.double().mean()))
        if not isinstance(agent, LearnedPolicy):
            return Contender(agent)
        if price is None:
            price = settled_price(agent, self.engine(agent, Role.VALIDATION), nfe)
        return Contender(agent, price)

    def tuned(self, name: str, nfe: float) -> Contender:
        """The fixed schedule ``name`` with the last time that suits its budget best; its name gets a ``*``.

        A policy may leave the grid's last points out, a schedule through both of the model's ends may not.
        The last time is chosen on validation noise, by the validation judge.
        """
        extractor, reference = load_reference(self.data, "validation", self.times.device)
        info, schedule = self.model.info, self.model.denoiser.schedule
        ends = schedule.time_of(torch.tensor(END_LAMS, dtype=torch.float64)).tolist()
        best: tuple[float, Contender] | None = None
        for end in [info.t_end, *(end for end in ends if info.t_end < end < info.t_start)]:
            agent = make_agent(
                name,
                replace(budget_of(self.model, nfe, len(self.times)), t_end=end),
                model=self.model,
                solver=self.solver,
            )
            images = self.engine(agent, Role.VALIDATION).sample(agent, TUNING_IMAGES).images
            distance = frechet_distance(gather(images, extractor)[0], reference.statistics)
            if best is None or distance < best[0]:
                agent.name = f"{name}{TUNED}"
                best = (distance, Contender(agent))
        assert best is not None, "the model's own end is always tried"
        return best[1]

    def draw(
        self, contender: Contender, num_samples: int, progress: Callable[[int], None] | None = None
    ) -> Samples:
        """Draw this process's share of images 0 … of the evaluation noise, as files would hold them."""
        engine, mine = self.engine(contender.agent), self.world.share(num_samples)
        room = room_for((len(mine), *self.model.denoiser.shape))
        warm_up = min(self.model.denoiser.warm_up, len(mine))
        engine.sample(contender.agent, warm_up, price=contender.price)  # caches and kernels
        return engine.sample(
            contender.agent,
            len(mine),
            price=contender.price,
            first_image=mine.start,
            room=room,
            progress=progress,
        )


def budget_of(model: Model, nfe: float, num_decisions: int) -> Budget:
    """What a baseline needs to spend ``nfe`` evaluations between the ends of ``model``."""
    info = model.info
    return Budget(nfe, info.t_start, info.t_end, num_decisions, model.denoiser.schedule)


def check_baseline(name: str) -> None:
    """Raise :class:`UserError` where nothing is called ``name``, but for the ``*`` after a spacing's."""
    check_name(name.removesuffix(TUNED))
    if name.endswith(TUNED) and name.removesuffix(TUNED) not in BASELINES:
        raise UserError(f"{name}: a {TUNED} is for spacings, the times of others are what they are")


def make_arena(
    config: AgentChoice, *, blocks: int, judge: str | None = None, world: World | None = None
) -> tuple[Arena, Contender]:
    """Load the model and settle the requested policy's budget."""
    world = world or World()
    DATASETS[config.data.name]
    check_name(config.policy)
    if config.solver is not None:
        make_solver(config.solver)
    device = device_of(resolve_device(config.device), world.local_rank)
    model = load_model(
        config.model or config.data.name,
        device,
        precision=config.precision,
        dataset=config.data.name,
        compiled=config.compile,
    )
    nfe = config.target_nfe or DEFAULT_NFE
    budget = budget_of(model, nfe, config.num_decisions)
    agent = make_agent(config.policy, budget, model=model, solver=config.solver)
    _check_budget(config, agent, model)
    data = data_of(model, config.data)
    arena = Arena(
        model=model,
        data=data,
        solver=_solver_of(agent, config.solver),
        times=decision_grid(model, config.num_decisions).to(device),
        seed=config.seed,
        batch_size=config.batch_size,
        blocks=blocks,
        judge=judge,
        mode=config.actions == "mode",
        clip=config.clip,
        world=world,
    )
    own = agent.info.target_nfe if isinstance(agent, LearnedPolicy) else None
    return arena, arena.settle(agent, config.target_nfe or own or DEFAULT_NFE, config.price)


def _solver_of(agent: Agent, asked: str | None) -> str:
    """The solver that goes with an agent: its own, or the one asked for."""
    own = agent.info.solver if isinstance(agent, LearnedPolicy) else None
    if isinstance(agent, FixedSchedule | Planned):
        own = agent.solver
    name = own or asked or DEFAULT_SOLVER
    make_solver(name)
    return name


def _check_budget(config: AgentChoice, agent: Agent, model: Model) -> None:
    """Raise :class:`UserError` for a budget that the agent cannot spend or a price it was not trained at."""
    nfe = config.target_nfe or DEFAULT_NFE
    if isinstance(agent, LearnedPolicy):
        low, high = agent.info.prices
        if config.price is not None and not low * (1 - 1e-9) <= config.price <= high * (1 + 1e-9):
            raise UserError(
                f"this {agent.name} policy knows prices from {low:g} to {high:g}: {config.price:g}"
            )
        return
    if config.price is not None:
        raise UserError(f"--price is for learned policies; give '{agent.name}' a --target-nfe")
    check_nfe(agent, nfe, config.num_decisions, model)
    if config.target_nfe is not None and given(config.policy) is not None:
        assert isinstance(agent, FixedSchedule | Mixture)
        if whole(agent.nfe) != whole(config.target_nfe):
            raise UserError(f"{agent.name} spends {agent.nfe:g} evaluations, not {config.target_nfe:g}")


def check_nfe(agent: Agent, nfe: float, num_decisions: int, model: Model) -> None:
    """Raise :class:`UserError` for a budget that is more than the points an agent may evaluate."""
    most = num_decisions if agent.times is None else model.info.schedule.num_train_timesteps
    if nfe > most:
        raise UserError(f"'{agent.name}' can spend at most {most} evaluations per image, not {nfe:g}")
