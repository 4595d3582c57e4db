"""Quality scores: what an image is worth. A new one is a file and a line here."""

from envs.registry import Registry

REWARDS = Registry(
    "reward",
    {
        "pixel": "envs.rewards.teacher:PixelDistance",
        "feature": "envs.rewards.teacher:FeatureDistance",
        "local_error": "envs.rewards.local_error:LocalError",
        "witness": "envs.rewards.distribution:Witness",
        "witness_narrow": "envs.rewards.distribution:NarrowWitness",
        "witness_wide": "envs.rewards.distribution:WideWitness",
        "witness_laplace": "envs.rewards.distribution:LaplaceWitness",
        "witness_rational": "envs.rewards.distribution:RationalWitness",
        "witness_energy": "envs.rewards.distribution:EnergyWitness",
        "witness_polynomial": "envs.rewards.distribution:PolynomialWitness",
        "log_ratio": "envs.rewards.distribution:LogRatio",
        "realism": "envs.rewards.realism:Realism",
        "frechet": "envs.rewards.frechet:FrechetSlope",
        "neighbour": "envs.rewards.distribution:NeighbourRatio",
        "discriminator": "envs.rewards.discriminator:Discriminator",
    },
)
