"""What ``python -m stepdrop_rl.benchmark`` can measure. A new part is a module and a line here."""

from envs.registry import Registry

PARTS = Registry(
    "part",
    {
        "environment": "stepdrop_rl.benchmarks.environment:measure_environment",
        "rollout": "stepdrop_rl.benchmarks.rollout:measure_rollout",
        "cpu": "stepdrop_rl.benchmarks.cpu:measure_cpu",
        "compiled": "stepdrop_rl.benchmarks.compiled:measure_compiled",
        "engine": "stepdrop_rl.benchmarks.engine:measure_engine",
        "pipeline": "stepdrop_rl.benchmarks.pipeline:measure_pipeline",
        "training": "stepdrop_rl.benchmarks.training:measure_training",
        "speed": "stepdrop_rl.benchmarks.speed:measure_speed",
        "policy": "stepdrop_rl.benchmarks.policy:measure_policy",
    },
)
