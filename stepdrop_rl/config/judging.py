"""Judges, comparisons and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stepdrop_rl.config.common import CommonConfig, Precision, require, require_blocks
from stepdrop_rl.config.policy import AgentChoice


@dataclass(frozen=True, kw_only=True)
class TrainExtractorConfig(CommonConfig):
    """Train a small classifier whose several-depth features reward or judge.

    Args:
        role: Who uses it: reward, second (of rewards), validation or judge. It decides the images, the width
            and the seed.
        output: Folder of the result (default runs/DATA/extractor-ROLE).
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's learning rate.
        precision: Of the network while it learns; auto is bfloat16 on CUDA, else float32.
    """

    role: Literal["reward", "second", "validation", "judge"] = "judge"
    output: str | None = None
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs > 0, f"epochs must be positive, not {self.epochs}")
        require(self.batch_size >= 2, f"batch_size must be at least 2 (batch statistics): {self.batch_size}")


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
        require(
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
        require(self.num_images >= 32, f"num_images must be at least 32, not {self.num_images}")


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
        baselines: Agents, files or lists of times ("[967.1, 500, 24]") to compare with; a * after a spacing's
            name: only with the last time that suits it best.
        blocks: Disjoint blocks of noise; every distance is a mean over them with its standard error.
        tuned: Also show every spacing with the last time that suits its budget best, marked *.
        teacher: Also draw the full trajectory, show it, and tell how near it the others are.
        ladder: Solver to evaluation counts: instead of a policy, judge evenly spaced times at each of them.
        curve: Budgets of the figure of quality against NFE (empty: no figure).
        curve_samples: Images per point of that figure.
    """

    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    baselines: list[str] = field(default_factory=lambda: ["uniform", "quadratic", "log_snr", "bernoulli"])
    blocks: int = 5
    tuned: bool = True
    teacher: bool = True
    ladder: dict[str, list[int]] = field(default_factory=dict)
    curve: list[float] = field(default_factory=lambda: [4.0, 5.0, 6.0, 8.0])
    curve_samples: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        require_blocks(self.num_samples, self.blocks)
        for solver, counts in self.ladder.items():
            require(
                isinstance(counts, list)
                and bool(counts)
                and all(isinstance(n, int) and n > 0 for n in counts),
                f"ladder.{solver} must be a list of evaluation counts, not {counts}",
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(CommonConfig):
    """Measure the environment, the engine, training and the policy.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        parts: What to measure.
        training: YAML file of the training settings to measure (default: train_diffusion's own).
        num_envs: Trajectories in the environment's comparison.
        batch_size: Images per batch in the engine's comparison and the one of speed.
        repeats: Interleaved repetitions of each timing.
        training_seeds: Training runs of the policy.
        num_samples: Images per evaluation of the policy.
        target_nfe: Budget of the policy's comparison, and of the first contender of speed.
        contenders: Of the part speed: a policy and, each with its own solver, schedule files or others.
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
    contenders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_envs", "batch_size", "repeats", "training_seeds"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SamplerTableConfig(CommonConfig):
    """Compare all solvers and spacings at several budgets.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        solvers: Solvers, with their settings if they have any (empty: all).
        schedules: Spacings; a file or a list of times stands in the column of its own count.
        nfe: Evaluations per image.
        clip: How clean estimates are kept within [−1, 1]: static, dynamic (Imagen's thresholding) or none.
        diffusers: Also diffusers' own samplers, on their own grids.
        num_samples: Images per cell.
        precision: Of the network.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
        metrics: Who judges.
        report: Markdown file of the table.
        figure: PNG file of the curves.
    """

    model: str | None = None
    solvers: list[str] = field(default_factory=list)
    schedules: list[str] = field(
        default_factory=lambda: ["uniform", "trailing", "quadratic", "log_snr", "karras"]
    )
    nfe: list[int] = field(default_factory=lambda: [4, 5, 6, 8, 10, 15, 20])
    clip: Literal["static", "dynamic", "none"] = "static"
    diffusers: bool = True
    num_samples: int = 1024
    precision: Precision = "auto"
    compile: bool = False
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    report: str | None = None
    figure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.nfe) and min(self.nfe) >= 2, f"nfe needs budgets of at least 2, not {self.nfe}")
        require(bool(self.schedules), "sampler_table needs schedules")
        require(self.num_samples >= 32, f"num_samples must be at least 32, not {self.num_samples}")


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig(CommonConfig):
    """Say what unequal numbers of evaluations could gain, and when that can be known.

    Args:
        model: Name of a shipped model, or the folder of one (default: the data set's).
        solver: The jump.
        schedule: Fixed spacing of every number of evaluations, its last time chosen on validation noise.
        nfe: Mean evaluations per image.
        fewest: Evaluations that an image may get at least.
        most: And at most.
        num_samples: Images.
        precision: Of the network.
        compile: Compile the network's calls, on a CPU: up to a minute, then a quarter less time or better.
        metrics: Who judges.
        report: Markdown file of the tables.
    """

    model: str | None = None
    solver: str = "multistep"
    schedule: str = "log_snr"
    nfe: list[int] = field(default_factory=lambda: [4, 5, 6, 8])
    fewest: int = 3
    most: int = 10
    num_samples: int = 2048
    precision: Precision = "auto"
    compile: bool = False
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    report: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.fewest < self.most, f"need 2 <= fewest < most, not {self.fewest} and {self.most}")
        inside = bool(self.nfe) and all(self.fewest <= nfe <= self.most for nfe in self.nfe)
        require(inside, f"nfe needs means from fewest to most ({self.fewest} to {self.most}), not {self.nfe}")
        require(self.num_samples >= 64, f"num_samples must be at least 64, not {self.num_samples}")
