"""The decision problem, who decides, and learning to decide."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from stepdrop_rl.config.common import CommonConfig, Precision, RewardName, require, require_minutes


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The decision problem.

    Args:
        solver: A solver, with its settings if it has any: ddim:eta=0.5.
        num_decisions: N, points of the decision grid between the model's ends.
        price: Price of an evaluation; without it one is drawn per episode.
        price_min: Smallest price drawn.
        price_max: Largest price drawn.
        target_nfe: Mean evaluations per image to hold the policy to: one price, which starts at env.price
            (without it, at the middle of the range) and moves until the target is met.
        price_step: By how much its logarithm moves per round, per relative miss of the target.
        reward: Quality scores and their weights.
        extractor: What quality scores look through: our own network, both of our own (train_extractor --role
            second), or our own joined with components of EfficientNet-Lite2, which knows large images (real
            images; extra 'judge').
        price_bins: Ranges of log price, each of which compares with what was generated in it alone.
        num_features: Numbers that the observation shows of the network's pooled features (0: none).
        features: Which: of its middle block, of its decoder (the last block upwards), or both.
        projection: How they become those numbers: principal components, random directions, or encoder, which
            shows them all, so that the policy's first layer learns the projection (leave num_features at 0).
        bank_size: Noises (with their full-trajectory results) that episodes start from.
        teacher_steps: Evaluations of the full trajectory.
    """

    solver: str = "multistep"
    num_decisions: int = 24
    price: float | None = None
    price_min: float = 0.0004
    price_max: float = 0.12
    target_nfe: float | None = None
    price_step: float = 0.2
    reward: dict[str, float] = field(default_factory=lambda: {"feature": 4.0, "neighbour": 1.0})
    extractor: RewardName = "reward"
    price_bins: int = 6
    num_features: int = 0
    features: Literal["middle", "decoder", "both"] = "middle"
    projection: Literal["principal", "random", "encoder"] = "principal"
    bank_size: int = 4096
    teacher_steps: int = 50

    def __post_init__(self) -> None:
        require(self.price is None or self.price >= 0, f"env.price must not be negative: {self.price}")
        require(
            0 < self.price_min <= self.price_max,
            f"need 0 < env.price_min <= env.price_max, not {self.price_min} and {self.price_max}",
        )
        require(
            self.target_nfe is None or 1 < self.target_nfe < self.num_decisions,
            f"env.target_nfe must lie between 1 and env.num_decisions, not {self.target_nfe}",
        )
        require(self.price_step > 0, f"env.price_step must be positive, not {self.price_step}")
        require(self.price != 0 or self.target_nfe is None, "a price that moves cannot start at 0")
        require(self.num_decisions >= 2, f"env.num_decisions must be at least 2, not {self.num_decisions}")
        require(bool(self.reward), "env.reward needs at least one quality score")
        require(self.price_bins >= 1, f"env.price_bins must be at least 1, not {self.price_bins}")
        require(self.num_features >= 0, f"env.num_features must not be negative: {self.num_features}")
        encoder = self.projection == "encoder"
        require(
            not (encoder and self.num_features),
            "env.projection encoder shows all features: leave env.num_features at 0",
        )
        require(
            self.shows_features or (self.features, self.projection) == ("middle", "principal"),
            "env.features and env.projection need env.num_features: none are shown",
        )
        require(self.bank_size >= 32, f"env.bank_size must be at least 32, not {self.bank_size}")
        require(self.teacher_steps > 0, f"env.teacher_steps must be positive, not {self.teacher_steps}")

    @property
    def shows_features(self) -> bool:
        """Whether the observation shows any of the network's features."""
        return self.num_features > 0 or self.projection == "encoder"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, as a denoiser is asked for them."""
        return ("middle", "decoder") if self.features == "both" else (self.features,)

    @property
    def prices(self) -> tuple[float, float]:
        """Smallest and largest price that an episode may see (one that moves: where it starts)."""
        if self.target_nfe is not None and self.price is None:
            return (math.sqrt(self.price_min * self.price_max),) * 2
        return (self.price_min, self.price_max) if self.price is None else (self.price, self.price)


@dataclass(frozen=True, kw_only=True)
class TrainPolicyConfig(CommonConfig):
    """Learn a skip policy.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        algo: Learning algorithm.
        env: The decision problem.
        start_from: Folder of a policy to begin with instead of chance; with fork, of a run of the same plans
            whose looks it learns from, in place of its own.
        output: Folder of the policy (default runs/DATA/ALGO).
        resume: Go on with the run in the output folder.
        decisions: Decisions to learn from, over all trajectories.
        max_minutes: Interrupt after this long; --resume goes on.
        num_envs: Trajectories in parallel.
        hyperparameters: Of the algorithm, over its defaults.
        judge_every: Decisions between two looks by the validation judge.
        judge_samples: Images per look.
        target_nfe: Budgets at which the validation judge looks.
        precision: Of the network; auto is bfloat16 on CUDA, and for large networks on CPUs that have it.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
    """

    model: str | None = None
    algo: str = "ppo"
    env: EnvConfig = field(default_factory=EnvConfig)
    start_from: str | None = None
    output: str | None = None
    resume: bool = False
    decisions: int = 480_000
    max_minutes: float | None = None
    num_envs: int = 256
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    judge_every: int = 80_000
    judge_samples: int = 1024
    target_nfe: list[float] = field(default_factory=lambda: [4.0, 5.0, 6.0, 8.0, 10.0, 15.0])
    precision: Precision = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.decisions > 0, f"decisions must be positive, not {self.decisions}")
        require(self.judge_every > 0, f"judge_every must be positive, not {self.judge_every}")
        require(self.judge_samples >= 32, f"judge_samples must be at least 32, not {self.judge_samples}")
        require(
            len(self.target_nfe) > 0 and min(self.target_nfe) >= 1,
            f"target_nfe needs budgets of at least 1, not {self.target_nfe}",
        )
        require_minutes(self.max_minutes)
        require(self.num_envs > 0, f"num_envs must be positive, not {self.num_envs}")


@dataclass(frozen=True, kw_only=True)
class AgentChoice(CommonConfig):
    """Who decides, shared by the commands that draw images.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        policy: Name of an agent, a policy folder, a schedule file, a list of times ("[967.1, 500, 24]"), or
            chance with given probabilities of skipping (bernoulli:p=0.7 or "bernoulli:p=[0.2, 0.9]").
        solver: A solver, with its settings if it has any: ddim:eta=0.5 (a learned policy brings its own).
        target_nfe: Mean evaluations per image to spend at most (a learned policy without --price: 5,
            or what it was held to).
        price: Price of an evaluation given to a learned policy, instead of target_nfe.
        clip: How clean estimates are kept within [−1, 1]: static, dynamic (Imagen's thresholding) or none.
        actions: sample draws from the policy's probabilities, mode takes the likelier action.
        num_decisions: N, points of the decision grid, for agents that bring none.
        num_samples: Images to draw.
        batch_size: Images in one batch.
        precision: Of the network; auto is bfloat16 on CUDA, and for large networks on CPUs that have it.
            The trajectory is float32 always.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
    """

    model: str | None = None
    policy: str = "ppo"
    solver: str | None = None
    target_nfe: float | None = None
    price: float | None = None
    clip: Literal["static", "dynamic", "none"] = "static"
    actions: Literal["sample", "mode"] = "sample"
    num_decisions: int = 24
    num_samples: int = 2560
    batch_size: int = 256
    precision: Precision = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.target_nfe is None or self.target_nfe >= 1, "target_nfe must be at least 1")
        require(self.price is None or self.price >= 0, f"price must not be negative: {self.price}")
        require(self.price is None or self.target_nfe is None, "give either price or target_nfe, not both")
        require(self.num_samples > 0, f"num_samples must be positive, not {self.num_samples}")
        require(self.batch_size > 0, f"batch_size must be positive, not {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(AgentChoice):
    """Draw images.

    Args:
        num_samples: Images to draw.
        output: PNG file of the grid; a name without a suffix is a folder of as many files, 000000.png ….
    """

    num_samples: int = 64
    output: str = "samples.png"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(CommonConfig):
    """Search for the times of a fixed schedule, or for a mixture of several.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        method: xue, gits, oss, ld3, energy, blackbox, mixture, or oss_oracle (every training noise its own);
            energy:effort=8 searches for so much longer (ld3, energy, blackbox and mixture can),
            energy:order=2 with jumps of a lower order than the solver's (ld3, energy and blackbox can),
            energy:teacher=0.03 with its teacher's results at that weight in place of 0.125 (energy can).
        nfe: Evaluations per image.
        solver: A solver, with its settings if it has any: ddim:eta=0.5 (gits and oss write it into the file,
            but search with order-1 jumps).
        clip: How clean estimates are kept within [−1, 1]: static, dynamic (Imagen's thresholding) or none.
        extractor: What searches look at images through: as env.extractor of train_policy.
        precision: Of the network; auto is bfloat16 on CUDA, and for large networks on CPUs that have it.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
        output: Schedule file (default runs/DATA/schedules/METHOD-SOLVER-NFE.json).
    """

    model: str | None = None
    method: str = "xue"
    nfe: int = 5
    solver: str = "multistep"
    clip: Literal["static", "dynamic", "none"] = "static"
    extractor: RewardName = "reward"
    precision: Precision = "auto"
    compile: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.nfe >= 1, f"nfe must be at least 1, not {self.nfe}")
