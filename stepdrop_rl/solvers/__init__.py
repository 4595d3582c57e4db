"""Solvers: how a sample jumps from its anchor to any later time. A new one is a file and a line here."""

from envs.registry import Registry
from stepdrop_rl.solvers.reference import make_solver, require_lower

__all__ = ["SOLVERS", "make_solver", "require_lower"]

SOLVERS = Registry(
    "solver",
    {
        "ddpm": "stepdrop_rl.solvers.ddpm:DDPM",
        "ddim": "stepdrop_rl.solvers.ddim:DDIM",
        "ddim_markov_early": "stepdrop_rl.solvers.ddim:MarkovEarly",
        "ddim_markov_late": "stepdrop_rl.solvers.ddim:MarkovLate",
        "ddpm_large": "stepdrop_rl.solvers.ddpm:DDPMLarge",
        "multistep": "stepdrop_rl.solvers.multistep:Multistep",
        "multistep3": "stepdrop_rl.solvers.multistep3:Multistep3",
        "deis": "stepdrop_rl.solvers.deis:DEIS",
        "deis3": "stepdrop_rl.solvers.deis:DEIS3",
        "ipndm2": "stepdrop_rl.solvers.ipndm:IPNDM",
        "ipndm3": "stepdrop_rl.solvers.ipndm:IPNDM3",
        "ipndm": "stepdrop_rl.solvers.ipndm:IPNDM4",
    },
)
