"""Who decides: fixed schedules, chance, and policies learned by Stable-Baselines3's and our own algorithms.

A new agent is a file and a line here. ``BASELINES`` make an agent from a budget; ``ALGORITHMS`` learn one.
``LOOKING`` are the baselines that look at the sample, by a rule that nothing learned.
"""

from envs.registry import Registry

BASELINES = Registry(
    "policy",
    {
        "uniform": "agents.fixed:uniform",
        "quadratic": "agents.fixed:quadratic",
        "log_snr": "agents.fixed:log_snr",
        "trailing": "agents.fixed:trailing",
        "leading": "agents.fixed:leading",
        "karras": "agents.fixed:karras",
        "bernoulli": "agents.stochastic:bernoulli",
        "adaptive_error": "agents.adaptive:adaptive_error",
        "adaptive_change": "agents.adaptive:adaptive_change",
        "adaptive_eps": "agents.adaptive:adaptive_eps",
        "skip_linear": "agents.curves:skip_linear",
        "skip_cosine2": "agents.curves:skip_cosine2",
        "skip_quadratic": "agents.curves:skip_quadratic",
        "skip_early": "agents.curves:skip_early",
        "skip_late": "agents.curves:skip_late",
        "skip_critical": "agents.curves:skip_critical",
        "skip_middle": "agents.curves:skip_middle",
        "target_importance": "agents.target:target_importance",
        "target_stochastic": "agents.target:TargetStochastic",
    },
)

LOOKING = ("adaptive_error", "adaptive_change", "adaptive_eps")

ALGORITHMS = Registry(
    "algorithm",
    {
        "ppo": "agents.sb3:PPOLearner",
        "a2c": "agents.sb3:A2CLearner",
        "dqn": "agents.sb3:DQNLearner",
        "rloo": "agents.rloo:RLOOLearner",
        "relaxed": "agents.relaxed:RelaxedLearner",
        "pathwise": "agents.pathwise:PathwiseLearner",
        "fork": "agents.forking:ForkLearner",
        "clone": "agents.clone:CloneLearner",
        "trpo": "agents.contrib:TRPOLearner",
        "qrdqn": "agents.contrib:QRDQNLearner",
        "recurrent_ppo": "agents.contrib:RecurrentPPOLearner",
    },
)
