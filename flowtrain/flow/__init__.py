"""The mathematics: paths, objectives, and how samples are drawn.

path: x_t between noise and data, and the views of it that a network can predict.
objective: from a batch of clean latents to a loss.
solvers: one step of an ODE or SDE.
sampler: noise to samples, with guidance.
"""
