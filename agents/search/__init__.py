"""Schedules found by search: fixed times for every sample, made for one model, solver and budget.

A new method is a module with ``search(nfe, ground, seed) -> Found`` and a line here. What a method may ask of
the model is :class:`agents.search.base.Ground`; the noise it sees is that of training, never the judge's.
``ORACLES`` find a schedule for each of these noises, of no use on others; those of ``ORDER_1`` search with
order-1 (DDIM) jumps, whatever the solver that will run what they find.
"""

from envs.registry import Registry

SEARCHES = Registry(
    "search method",
    {
        "xue": "agents.search.xue:search",
        "gits": "agents.search.gits:search",
        "oss": "agents.search.oss:search",
        "oss_oracle": "agents.search.oss:search_per_sample",
        "ld3": "agents.search.ld3:search",
        "energy": "agents.search.energy:search",
        "blackbox": "agents.search.blackbox:search",
        "mixture": "agents.search.mixture:search",
    },
)

ORACLES = frozenset({"oss_oracle"})
ORDER_1 = frozenset({"gits", "oss", "oss_oracle"})
