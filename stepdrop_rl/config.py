"""The settings of every command, as frozen dataclasses. Nothing here imports torch: ``--help`` is instant.

A YAML file given by ``--config`` holds common settings at its top and one section per command; dotted
options on the command line win over it. Checks that need no library are made here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from envs.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
Prediction = Literal["epsilon", "v_prediction"]
Tracking = Literal["mlflow", "offline", "none"]

MAX_SEED = 2**32 - 1  # a seed is one word of the random numbers' key


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_minutes(max_minutes: float | None) -> None:
    _require(max_minutes is None or max_minutes >= 0, f"max_minutes must not be negative: {max_minutes}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images.

    Args:
        name: Data set.
        root: Folder that holds it, where it is not embedded (else the variable STEPDROP_DATA, else a cache).
        size: Pixels per side, for sets whose images come in any size (default: 32, CelebA 64).
        download: Fetch what is missing, where the set may be fetched.
    """

    name: str = "digits"
    root: str | None = None
    size: int | None = None
    download: bool = True

    def __post_init__(self) -> None:
        _require(self.size is None or self.size > 0, f"data.size must be positive, not {self.size}")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every command takes.

    Args:
        seed: Every random number is a function of it.
        device: auto, cpu, cuda or cuda:N.
        tracking: Where the run is recorded: mlflow, offline (a JSONL spool) or none.
        json: Also write the result as JSON to this file.
        data: The images.
    """

    seed: int = 0
    device: str = "auto"
    tracking: Tracking = "mlflow"
    json: str | None = None
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed <= MAX_SEED, f"seed must be in 0..{MAX_SEED}, not {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule.

    Args:
        name: cosine or linear.
        num_train_timesteps: T.
    """

    name: str = "cosine"
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        _require(self.num_train_timesteps >= 2, "schedule.num_train_timesteps must be at least 2")


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size of the diffusers ``UNet2DModel``.

    Args:
        channels: Width of every level.
        layers: Residual blocks per level.
        attention: Whether each level attends (same length as channels).
        head_dim: Channels per attention head.
        unshuffle: Side of the pixel blocks that become channels first (1: none).
        dropout: Share of a residual block's activations dropped in training.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64])
    layers: int = 1
    attention: list[bool] = field(default_factory=lambda: [False, True])
    head_dim: int = 16
    unshuffle: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _require(
            len(self.channels) == len(self.attention),
            "unet.channels and unet.attention need the same number of levels",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training makes small.

    Args:
        name: ddpm, s2dm (the skip-step loss of S²-DM) or s2dm_weight (its control: the same weights alone).
        skip: Steps that S²-DM skips.
        tau: Share of the plain loss in S²-DM's.
    """

    name: str = "ddpm"
    skip: int = 10
    tau: float = 0.99

    def __post_init__(self) -> None:
        _require(self.skip > 0, f"loss.skip must be positive, not {self.skip}")
        _require(0 <= self.tau <= 1, f"loss.tau must be in [0, 1], not {self.tau}")


@dataclass(frozen=True, kw_only=True)
class SkipAwareConfig:
    """Training on what the model itself makes of an image, not only on noised data.

    Args:
        share: Share of the images whose input is the model's own jump (0: none).
        policy: Whose jumps: an agent, a policy folder or a schedule file.
        nfe: Evaluations per image that it spends.
    """

    share: float = 0.0
    policy: str = "uniform"
    nfe: float = 10.0

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, f"skip_aware.share must be in [0, 1], not {self.share}")
        _require(self.nfe >= 1, f"skip_aware.nfe must be at least 1, not {self.nfe}")


@dataclass(frozen=True, kw_only=True)
class TrainDiffusionConfig(CommonConfig):
    """Train a tiny diffusion model.

    Args:
        output: Folder of the run (default runs/DATA/diffusion).
        resume: Go on with the run in the output folder.
        steps: Optimiser steps of the whole run (warm-up and decay are laid over them).
        max_minutes: Interrupt after this long; --resume goes on.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's learning rate.
        warmup_steps: Linear warm-up.
        weight_decay: AdamW's.
        grad_clip: Largest gradient norm.
        ema_decay: Decay of the averaged weights.
        loss: What training makes small.
        min_snr_gamma: Weight min(SNR, gamma)/SNR of the ddpm loss; 0 turns it off.
        skip_aware: Training on the model's own jumps.
        flip: Mirror half of the images.
        prediction: epsilon or v_prediction.
        precision: Of the network; auto is bfloat16 on CUDA, else float32.
        compile: Compile the network; auto does on CUDA (on a CPU it gains nothing).
        deterministic: Only algorithms that repeat to the bit, on CUDA too.
        schedule: Noise schedule.
        unet: Network.
        checkpoint_every: Steps between checkpoints.
        sample_every: Steps between sample grids and the validation judge's looks.
        choose_ends: Choose t_start and t_end on validation noise when the run is complete.
    """

    output: str | None = None
    resume: bool = False
    steps: int = 6_000
    max_minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    loss: LossConfig = field(default_factory=LossConfig)
    min_snr_gamma: float = 0.0
    skip_aware: SkipAwareConfig = field(default_factory=SkipAwareConfig)
    flip: bool = False
    prediction: Prediction = "epsilon"
    precision: Precision = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    deterministic: bool = False
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    checkpoint_every: int = 1000
    sample_every: int = 2000
    choose_ends: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps > 0, f"steps must be positive, not {self.steps}")
        for name in ("checkpoint_every", "sample_every"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        _require_minutes(self.max_minutes)
        _require(self.batch_size > 0, f"batch_size must be positive, not {self.batch_size}")
        _require(self.warmup_steps < self.steps, "warmup_steps must be smaller than steps")
        _require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)")
        _require(
            self.min_snr_gamma == 0 or self.loss.name == "ddpm",
            f"min_snr_gamma weights the ddpm loss; {self.loss.name} has weights of its own",
        )


@dataclass(frozen=True, kw_only=True)
class TrainExtractorConfig(CommonConfig):
    """Train a small classifier whose several-depth features reward or judge.

    Args:
        role: Who uses it: reward, validation or judge. It decides the images, the width and the seed.
        output: Folder of the result (default runs/DATA/extractor-ROLE).
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's learning rate.
        precision: Of the network while it learns; auto is bfloat16 on CUDA, else float32.
    """

    role: Literal["reward", "validation", "judge"] = "judge"
    output: str | None = None
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epochs > 0, f"epochs must be positive, not {self.epochs}")
        _require(self.batch_size >= 2, f"batch_size must be at least 2 (batch statistics): {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The decision problem.

    Args:
        solver: Name in the solver registry.
        num_decisions: N, points of the decision grid between the model's ends.
        price: Price of an evaluation; without it one is drawn per episode.
        price_min: Smallest price drawn.
        price_max: Largest price drawn.
        reward: Quality scores and their weights.
        num_features: Pooled middle features of the network in the observation (0: none).
        bank_size: Noises (with their full-trajectory results) that episodes start from.
        teacher_steps: Evaluations of the full trajectory.
    """

    solver: str = "multistep"
    num_decisions: int = 24
    price: float | None = None
    price_min: float = 0.004
    price_max: float = 0.1
    reward: dict[str, float] = field(default_factory=lambda: {"feature": 4.0, "neighbour": 1.0})
    num_features: int = 0
    bank_size: int = 4096
    teacher_steps: int = 50

    def __post_init__(self) -> None:
        _require(self.price is None or self.price >= 0, f"env.price must not be negative: {self.price}")
        _require(
            0 < self.price_min <= self.price_max,
            f"need 0 < env.price_min <= env.price_max, not {self.price_min} and {self.price_max}",
        )
        _require(self.num_decisions >= 2, f"env.num_decisions must be at least 2, not {self.num_decisions}")
        _require(bool(self.reward), "env.reward needs at least one quality score")
        _require(self.bank_size >= 32, f"env.bank_size must be at least 32, not {self.bank_size}")
        _require(self.teacher_steps > 0, f"env.teacher_steps must be positive, not {self.teacher_steps}")

    @property
    def prices(self) -> tuple[float, float]:
        """Smallest and largest price that an episode may see."""
        return (self.price_min, self.price_max) if self.price is None else (self.price, self.price)


@dataclass(frozen=True, kw_only=True)
class TrainPolicyConfig(CommonConfig):
    """Learn a skip policy.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        algo: Learning algorithm.
        env: The decision problem.
        output: Folder of the policy (default runs/DATA/ALGO).
        resume: Go on with the run in the output folder.
        decisions: Decisions to learn from, over all trajectories.
        max_minutes: Interrupt after this long; --resume goes on.
        num_envs: Trajectories in parallel.
        hyperparameters: Of the algorithm, over its defaults.
        judge_every: Decisions between two looks by the validation judge.
        judge_samples: Images per look.
        target_nfe: Budgets at which the validation judge looks.
    """

    model: str | None = None
    algo: str = "ppo"
    env: EnvConfig = field(default_factory=EnvConfig)
    output: str | None = None
    resume: bool = False
    decisions: int = 480_000
    max_minutes: float | None = None
    num_envs: int = 256
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    judge_every: int = 80_000
    judge_samples: int = 1024
    target_nfe: list[float] = field(default_factory=lambda: [4.0, 5.0, 6.0, 8.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.decisions > 0, f"decisions must be positive, not {self.decisions}")
        _require(self.judge_every > 0, f"judge_every must be positive, not {self.judge_every}")
        _require(self.judge_samples >= 32, f"judge_samples must be at least 32, not {self.judge_samples}")
        _require(
            len(self.target_nfe) > 0 and min(self.target_nfe) >= 1,
            f"target_nfe needs budgets of at least 1, not {self.target_nfe}",
        )
        _require_minutes(self.max_minutes)
        _require(self.num_envs > 0, f"num_envs must be positive, not {self.num_envs}")


@dataclass(frozen=True, kw_only=True)
class AgentChoice(CommonConfig):
    """Who decides, shared by the commands that draw images.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        policy: Name of an agent, a policy folder, or a schedule file.
        solver: Name in the solver registry (a learned policy brings its own).
        target_nfe: Mean evaluations per image to spend at most (a learned policy without --price: 5).
        price: Price of an evaluation given to a learned policy, instead of target_nfe.
        actions: sample draws from the policy's probabilities, mode takes the likelier action.
        num_decisions: N, points of the decision grid, for agents that bring none.
        num_samples: Images to draw.
        batch_size: Images in one batch.
    """

    model: str | None = None
    policy: str = "ppo"
    solver: str | None = None
    target_nfe: float | None = None
    price: float | None = None
    actions: Literal["sample", "mode"] = "sample"
    num_decisions: int = 24
    num_samples: int = 2560
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.target_nfe is None or self.target_nfe >= 1, "target_nfe must be at least 1")
        _require(self.price is None or self.price >= 0, f"price must not be negative: {self.price}")
        _require(self.price is None or self.target_nfe is None, "give either price or target_nfe, not both")
        _require(self.num_samples > 0, f"num_samples must be positive, not {self.num_samples}")
        _require(self.batch_size > 0, f"batch_size must be positive, not {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Who judges.

    Args:
        extractor: judge (our own network of the data set), efficientnet_lite0, inception (downloaded), the
            folder of another of ours, or a file of torch-fidelity's Inception or of a CIFAR ResNet (default:
            judge for handwriting, efficientnet_lite0 for other images).
        inception_weights: File of the Inception network's weights, which then judges: a FID.
    """

    extractor: str | None = None
    inception_weights: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.extractor in (None, "inception") or self.inception_weights is None,
            "give either metrics.extractor or metrics.inception_weights, not both",
        )

    @property
    def judge(self) -> str | None:
        """Who judges, by name, folder or file."""
        return self.inception_weights or self.extractor


@dataclass(frozen=True, kw_only=True)
class CheckJudgeConfig(CommonConfig):
    """Examine a judge on real images, spoilt step by step.

    Args:
        metrics: Who judges.
        num_images: Images per set.
        report: Markdown file of the table.
    """

    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    num_images: int = 1024
    report: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_images >= 32, f"num_images must be at least 32, not {self.num_images}")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(CommonConfig):
    """Keep what a judge sees in the real images, so that judging needs no data set.

    Args:
        metrics: Who judges.
        output: Folder (default: the shipped references of the data set).
    """

    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(AgentChoice):
    """Compare a policy with its baselines: same mean NFE, same solver, same noise.

    Args:
        metrics: Who judges.
        baselines: Agents to compare with.
        blocks: Disjoint blocks of noise; every distance is a mean over them with its standard error.
        tuned: Also show fixed baselines with the last time that suits their budget best, marked *.
        teacher: Also show the full trajectory.
        ladder: Solver to evaluation counts: instead of a policy, judge evenly spaced times at each of them.
        curve: Budgets of the figure of quality against NFE (empty: no figure).
        curve_samples: Images per point of that figure.
    """

    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    baselines: list[str] = field(default_factory=lambda: ["uniform", "quadratic", "bernoulli"])
    blocks: int = 5
    tuned: bool = True
    teacher: bool = True
    ladder: dict[str, list[int]] = field(default_factory=dict)
    curve: list[float] = field(default_factory=lambda: [4.0, 5.0, 6.0, 8.0])
    curve_samples: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.blocks >= 2, f"blocks must be at least 2, not {self.blocks}")
        _require(
            self.num_samples % self.blocks == 0,
            f"num_samples ({self.num_samples}) must be a multiple of blocks ({self.blocks})",
        )
        for solver, counts in self.ladder.items():
            _require(
                isinstance(counts, list)
                and bool(counts)
                and all(isinstance(n, int) and n > 0 for n in counts),
                f"ladder.{solver} must be a list of evaluation counts, not {counts}",
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(AgentChoice):
    """Draw images.

    Args:
        num_samples: Images to draw.
        output: PNG file of the grid.
    """

    num_samples: int = 64
    output: str = "samples.png"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(CommonConfig):
    """Measure the environment, the engine, training and the policy.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        parts: What to measure.
        training: YAML file of the training settings to measure (default: train_diffusion's own).
        num_envs: Trajectories in the environment's comparison.
        batch_size: Images per batch in the engine's comparison.
        repeats: Interleaved repetitions of each timing.
        training_seeds: Training runs of the policy.
        num_samples: Images per evaluation of the policy.
        target_nfe: Budget of the policy's comparison.
    """

    model: str | None = None
    parts: list[str] = field(default_factory=lambda: ["environment", "engine", "policy"])
    training: str | None = None
    num_envs: int = 256
    batch_size: int = 256
    repeats: int = 7
    training_seeds: int = 3
    num_samples: int = 2560
    target_nfe: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_envs", "batch_size", "repeats", "training_seeds"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StudyTrainingConfig(CommonConfig):
    """Compare ways of training: the same seeds, data order and steps, judged at several budgets.

    Args:
        data: The images (those of the training settings).
        training: YAML file of the training settings that all variants share.
        variants: Name to what it changes of them ("loss.name": s2dm); the first one is compared with.
        scaled: Name to [variant, skip]: that variant's networks, their eps times S²-DM's b(t) when sampling.
        seeds: Training seeds; several processes may take some each.
        solver: Name in the solver registry.
        nfe: Evaluations per image, evenly spaced between the default ends.
        num_samples: Images per budget.
        num_real: Training images that distances to training data are measured with.
        extractor: Who judges (default: the data set's).
        output: Folder of the networks and results (default runs/DATA/study_training).
        report: Markdown file of the tables.
        max_minutes: Begin no new training after this long.
    """

    training: str = "configs/study_training.yaml"
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"plain": {}})
    scaled: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    solver: str = "ddim"
    nfe: list[int] = field(default_factory=lambda: [10, 20, 50, 100])
    num_samples: int = 1024
    num_real: int = 10_000
    extractor: str | None = None
    output: str | None = None
    report: str | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.variants), "study_training needs at least one variant")
        _require(bool(self.seeds) and bool(self.nfe), "study_training needs seeds and budgets")
        _require(min(self.nfe, default=1) >= 1, f"nfe needs budgets of at least 1, not {self.nfe}")
        _require(self.num_samples >= 32, f"num_samples must be at least 32, not {self.num_samples}")
        for name, entry in self.scaled.items():
            _require(
                len(entry) == 2 and entry[0] in self.variants and isinstance(entry[1], int) and entry[1] > 0,
                f"scaled.{name} must be [one of the variants, skip], not {entry}",
            )
        _require_minutes(self.max_minutes)
