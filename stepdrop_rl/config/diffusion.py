"""Training diffusion models, and comparing ways of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stepdrop_rl.config.common import CommonConfig, Precision, Prediction, require, require_minutes


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
        require(self.num_train_timesteps >= 2, "schedule.num_train_timesteps must be at least 2")


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
        require(
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
        require(self.skip > 0, f"loss.skip must be positive, not {self.skip}")
        require(0 <= self.tau <= 1, f"loss.tau must be in [0, 1], not {self.tau}")


@dataclass(frozen=True, kw_only=True)
class SkipAwareConfig:
    """Training on what the model itself makes of an image, not only on noised data.

    Args:
        share: Share of the images whose input is the model's own jump (0: none).
        policy: Whose jumps: an agent, a policy folder, a schedule file or a list of times.
        nfe: Evaluations per image that it spends.
    """

    share: float = 0.0
    policy: str = "uniform"
    nfe: float = 10.0

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, f"skip_aware.share must be in [0, 1], not {self.share}")
        require(self.nfe >= 1, f"skip_aware.nfe must be at least 1, not {self.nfe}")


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
        ends_samples: Images that each pair of ends is judged by.
        ends_judge: Who judges them: validation (our own network, by the Fréchet distance), or another
            extractor, by KID: of few images in many features, a Fréchet distance is mostly bias.
        weights: Type in which the averaged weights are written; half of the bytes lose nothing that shows.
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
    ends_samples: int = 1024
    ends_judge: str = "validation"
    weights: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps > 0, f"steps must be positive, not {self.steps}")
        for name in ("checkpoint_every", "sample_every"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        require_minutes(self.max_minutes)
        require(self.batch_size > 0, f"batch_size must be positive, not {self.batch_size}")
        require(self.ends_samples >= 32, f"ends_samples must be at least 32, not {self.ends_samples}")
        require(self.warmup_steps < self.steps, "warmup_steps must be smaller than steps")
        require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)")
        require(
            self.min_snr_gamma == 0 or self.loss.name == "ddpm",
            f"min_snr_gamma weights the ddpm loss; {self.loss.name} has weights of its own",
        )


@dataclass(frozen=True, kw_only=True)
class StudyTrainingConfig(CommonConfig):
    """Compare ways of training: the same seeds, data order and steps, judged at several budgets.

    Args:
        data: The images (those of the training settings).
        training: YAML file of the training settings that all variants share (default: train_diffusion's own).
        variants: Name to what it changes of them ("loss.name": s2dm); the first one is compared with.
        scaled: Name to [variant, skip]: that variant's networks, their eps times S²-DM's b(t) when sampling.
        seeds: Training seeds; several processes may take some each.
        solver: A solver, with its settings if it has any: ddim:eta=0.5.
        nfe: Evaluations per image, evenly spaced between the default ends.
        num_samples: Images per budget.
        num_real: Training images that distances to training data are measured with.
        extractor: Who judges (default: the data set's).
        output: Folder of the networks and results (default runs/DATA/study_training).
        report: Markdown file of the tables.
        max_minutes: Begin no new training after this long.
    """

    training: str | None = None
    variants: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "plain": {"steps": 1000},
            "S²-DM": {"steps": 1000, "loss.name": "s2dm"},
            "its weights alone": {"steps": 1000, "loss.name": "s2dm_weight"},
        }
    )
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
        require(bool(self.variants), "study_training needs at least one variant")
        require(bool(self.seeds) and bool(self.nfe), "study_training needs seeds and budgets")
        require(min(self.nfe, default=1) >= 1, f"nfe needs budgets of at least 1, not {self.nfe}")
        require(self.num_samples >= 32, f"num_samples must be at least 32, not {self.num_samples}")
        for name, entry in self.scaled.items():
            require(
                len(entry) == 2 and entry[0] in self.variants and isinstance(entry[1], int) and entry[1] > 0,
                f"scaled.{name} must be [one of the variants, skip], not {entry}",
            )
        require_minutes(self.max_minutes)
