"""Metrics that say what they are: extractors, distances, blocks, cost."""

from stepdrop_rl.metrics.base import (
    METRICS,
    FeatureExtractor,
    Metric,
    Reference,
    RewardExtractor,
    distance_name,
    measure,
)
from stepdrop_rl.metrics.blocks import BlockMean, Difference, block_mean, over_blocks, paired_difference
from stepdrop_rl.metrics.extractor import ROLES, Extractor, load_extractor
from stepdrop_rl.metrics.reference import (
    default_judge,
    find_extractor,
    gather,
    load_reference,
    load_reward,
    make_reference,
    quality,
)

__all__ = [
    "METRICS",
    "ROLES",
    "BlockMean",
    "Difference",
    "Extractor",
    "FeatureExtractor",
    "Metric",
    "Reference",
    "RewardExtractor",
    "block_mean",
    "default_judge",
    "distance_name",
    "find_extractor",
    "gather",
    "load_extractor",
    "load_reference",
    "load_reward",
    "make_reference",
    "measure",
    "over_blocks",
    "paired_difference",
    "quality",
]
