"""Latents to checkpoints in JAX: DiT, flow-matching objective, samplers, Grain loader.

cli, train_cli: the commands; train: the loop; plan: what is checked before it; step: one update;
model: the network; optim: the optimiser; validation, progress, metrics, sinks: what is seen of a
run; replay: the records of a step; recipes: shipped settings; quickstart: images to a report.
Rooms: flow (the mathematics), records (reading), state (what a run carries on), devices.
"""
