"""Solvers by name and what a step of each costs; in plain Python, for any machine."""

from typing import Literal

Solver = Literal[
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "dopri5",
    "ddim",
    "ddpm",
    "sde",
    "sde-constant",
    "sde-linear",
    "sde-decreasing",
    "sde-increasing-decreasing",
    "sde-sbdm",
]
MOST_STEPS = 1_000_000  # float32 tells hardly more times apart
ADAPTIVE = "dopri5"  # chooses its own steps
EVERYWHERE = (0.0, 1.0)  # the interval of guidance that leaves nothing out
ASK_AT_DATA = ("heun", "rk4", ADAPTIVE)  # for the velocity at t = 1 too
# Network evaluations of a step, without those of guidance.
EVALUATIONS: dict[str, int] = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "rk4": 4,
    "ddim": 1,
    "ddpm": 1,
    "sde": 1,
    "sde-constant": 1,
    "sde-linear": 1,
    "sde-decreasing": 1,
    "sde-increasing-decreasing": 1,
    "sde-sbdm": 1,
}
