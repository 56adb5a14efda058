"""Latents to checkpoints in JAX: DiT, flow-matching objective, samplers, Grain loader.

cli, train_cli: the commands (`--set` is parsed in schemas.recipes); train_request: what `train` is
asked for, typed; option_types: paths as options; train: the loop, which goes on from the newest
checkpoint; plan: what is checked before it; step: one update; model: the network; optim: the
optimiser; shapes: of the arrays that pass between modules; validation, progress, metrics, sinks:
what is seen of a run; replay: the records of a step; recipes: shipped settings; quickstart: images
to a report; elsewhere: functions of pipelines and evaluation that the commands here call, by name
and typed.
Rooms (packages in this one): flow (the mathematics), records (reading), state (what a run carries
on), devices.
"""
