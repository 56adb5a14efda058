"""What a run carries on, and its work directory.

train_state: step, parameters, averages, optimiser.
ema: moving averages of the parameters.
posthoc: averages of any length from snapshots.
snapshots: parameters kept for that.
checkpoint: checkpoints saved, and restored to train or to sample.
folders: checkpoints by step; those after a step are cut off.
checksums: of the files of a folder, by which damage is told.
rollback: back to a checkpoint after steps that failed.
workdir: who may write into a work directory, and whether it is the same run.
faults: a full disk and other trouble in one line.
"""
