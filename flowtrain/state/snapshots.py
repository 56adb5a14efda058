"""Snapshots of power-function averages, from which other widths are made afterwards."""

from pathlib import Path
from typing import Any

from flowtrain.model import Params
from flowtrain.state.ema import power_names
from flowtrain.state.folders import StepFolders
from schemas.config import TrainConfig

SNAPSHOTS = "snapshots"


class Snapshots(StepFolders):
    """The snapshots of a work directory: float32 weights of each power-function average, by step.

    No directory is made where the recipe has no such averages.
    """

    def __init__(self, workdir: Path, config: TrainConfig, *, read_only: bool = False):
        self.widths = dict(zip(power_names(config), config.ema_power, strict=True))
        self.where = workdir
        self._every = config.ema_snapshot_every
        # of this recipe, nor of one before it
        nothing = not self.widths and not (workdir / SNAPSHOTS).exists()
        super().__init__(workdir / SNAPSHOTS, "snapshot", read_only=read_only or nothing)

    def save(self, step: int, ema: dict[str, Params]) -> None:
        """Begin to save those of `step`, a new one; returns when the arrays are copied."""
        if self.widths:
            self.write(step, {name: ema[name] for name in self.widths})

    def resume(self, step: int, ema: dict[str, Params]) -> None:
        """As `cut`, and save `step`'s from `ema` if a kill came before its checkpoint."""
        self.cut(step)
        if step > 0 and step % self._every == 0 and step not in self.steps():
            self.save(step, ema)

    def load(self, step: int, name: str, target: Any) -> Params:
        """One average at one step; `target` is a tree of ShapeDtypeStructs with shardings."""
        return self.read(step, {name: target})[name]
