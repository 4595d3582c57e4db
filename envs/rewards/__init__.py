"""Quality scores: what an image is worth. A new one is a file and a line here."""

from envs.registry import Registry

REWARDS = Registry(
    "reward",
    {
        "pixel": "envs.rewards.teacher:PixelDistance",
        "feature": "envs.rewards.teacher:FeatureDistance",
        "witness": "envs.rewards.distribution:Witness",
        "log_ratio": "envs.rewards.distribution:LogRatio",
        "realism": "envs.rewards.realism:Realism",
        "frechet": "envs.rewards.frechet:FrechetSlope",
        "neighbour": "envs.rewards.distribution:NeighbourRatio",
    },
)
