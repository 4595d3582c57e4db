"""Who decides: fixed schedules, chance, and policies learned by Stable-Baselines3's algorithms.

A new agent is a file and a line here. ``BASELINES`` make an agent from a budget; ``ALGORITHMS`` learn one.
"""

from envs.registry import Registry

BASELINES = Registry(
    "policy",
    {
        "uniform": "agents.fixed:uniform",
        "quadratic": "agents.fixed:quadratic",
        "log_snr": "agents.fixed:log_snr",
        "trailing": "agents.fixed:trailing",
        "bernoulli": "agents.stochastic:bernoulli",
    },
)

ALGORITHMS = Registry(
    "algorithm",
    {
        "ppo": "agents.sb3:PPOLearner",
        "a2c": "agents.sb3:A2CLearner",
        "dqn": "agents.sb3:DQNLearner",
    },
)
