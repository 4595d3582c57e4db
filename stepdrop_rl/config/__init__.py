"""The settings of every command, as frozen dataclasses. Nothing here imports torch: ``--help`` is instant.

A YAML file given by ``--config`` holds common settings at its top and one section per command; dotted
options on the command line win over it. Checks that need no library are made here.
"""

from stepdrop_rl.config.common import (
    MAX_SEED,
    CommonConfig,
    DataConfig,
    Precision,
    Prediction,
    RewardName,
    Tracking,
)
from stepdrop_rl.config.diffusion import (
    LossConfig,
    ScheduleConfig,
    SkipAwareConfig,
    StudyTrainingConfig,
    TrainDiffusionConfig,
    UNetConfig,
)
from stepdrop_rl.config.judging import (
    BenchmarkConfig,
    CheckJudgeConfig,
    EvaluateConfig,
    HeadroomConfig,
    MetricsConfig,
    ReferenceConfig,
    SamplerTableConfig,
    TrainExtractorConfig,
)
from stepdrop_rl.config.policy import AgentChoice, EnvConfig, SampleConfig, SearchConfig, TrainPolicyConfig
from stepdrop_rl.config.study import StudyConfig

__all__ = [
    "MAX_SEED",
    "AgentChoice",
    "BenchmarkConfig",
    "CheckJudgeConfig",
    "CommonConfig",
    "DataConfig",
    "EnvConfig",
    "EvaluateConfig",
    "HeadroomConfig",
    "LossConfig",
    "MetricsConfig",
    "Precision",
    "Prediction",
    "ReferenceConfig",
    "RewardName",
    "SampleConfig",
    "SamplerTableConfig",
    "ScheduleConfig",
    "SearchConfig",
    "SkipAwareConfig",
    "StudyConfig",
    "StudyTrainingConfig",
    "Tracking",
    "TrainDiffusionConfig",
    "TrainExtractorConfig",
    "TrainPolicyConfig",
    "UNetConfig",
]
