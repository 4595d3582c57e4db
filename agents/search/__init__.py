"""Schedules found by search: fixed times for every sample, made for one model, solver and budget.

A new method is a module with ``search(nfe, ground, seed) -> Found`` and a line here. What a method may ask of
the model is :class:`agents.search.base.Ground`; the noise it sees is that of training, never the judge's.
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
