"""Solvers by name: what a step of each costs. Needs nothing but Python, so a plan can be made anywhere."""

ADAPTIVE = "dopri5"  # chooses its own steps
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
