"""Solvers: how a sample jumps from its anchor to any later time. A new one is a file and a line here."""

from envs.registry import Registry

SOLVERS = Registry(
    "solver",
    {
        "ddpm": "stepdrop_rl.solvers.ddpm:DDPM",
        "ddim": "stepdrop_rl.solvers.ddim:DDIM",
        "multistep": "stepdrop_rl.solvers.multistep:Multistep",
    },
)
