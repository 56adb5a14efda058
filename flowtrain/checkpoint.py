"""Checkpoints on disk, hidden from the rest: an orbax manager with one item for each thing that is restored alone.

Items: `params`, `ema`, `opt` (arrays), `data` (the loader's state) and `meta` (step, dataset digest, recipe). A save is
asynchronous and is committed by a rename, so a killed process leaves the step before intact.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from flowtrain.model import Params, Velocity, make_network
from flowtrain.state import TrainState
from schemas.errors import UserError
from schemas.run import Run, read_run

CHECKPOINTS = "checkpoints"
ARRAY_ITEMS = ("params", "ema", "opt")
Weights = Literal["ema", "params"]


def _options(**changes: Any) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(**changes)


class Checkpoints:
    """The checkpoints of a work directory, open for writing. A context: leaving it waits for pending saves."""

    def __init__(self, workdir: Path, *, keep: int):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every phase of every save otherwise
        options = _options(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / CHECKPOINTS).resolve(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Begin to save; returns when the arrays have been copied off, so their buffers may be donated."""
        arrays = {name: ocp.args.StandardSave(getattr(state, name)) for name in ARRAY_ITEMS}
        self._manager.save(
            step,
            args=ocp.args.Composite(**arrays, data=ocp.args.JsonSave(dict(data)), meta=ocp.args.JsonSave(dict(meta))),
            force=True,
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, meta) of `step`. `like` is a tree of ShapeDtypeStructs with shardings: where to put it."""
        arrays = {name: ocp.args.StandardRestore(getattr(like, name)) for name in ARRAY_ITEMS}
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**arrays, data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        )
        number = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        return (
            TrainState(number, restored["params"], restored["ema"], restored["opt"]),
            restored["data"],
            restored["meta"],
        )


def with_sharding(abstract: Any, sharding: Sharding) -> Any:
    """ShapeDtypeStructs that say where each array goes, for `restore`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


@dataclass(frozen=True)
class TrainedModel:
    """What sampling needs of a run: `velocity(params, x, t, label)` with shapes as `DiT.__call__`."""

    run: Run
    step: int
    weights: Weights
    velocity: Velocity
    params: Params

    @property
    def null_class(self) -> int:
        """The label that means "no label"."""
        return len(self.run.classes)


def load_for_sampling(workdir: Path, step: int | None = None, weights: Weights = "ema") -> TrainedModel:
    """Restore one set of weights of one checkpoint, and nothing else, onto the first device.

    Args:
        workdir: the work directory of a run, which may be training at this moment.
        step: default: the newest.
        weights: the moving average, or the parameters themselves.

    Raises:
        UserError: no run, no checkpoint, or not this step.
    """
    run = read_run(workdir)
    directory = (workdir / CHECKPOINTS).resolve()
    if not directory.is_dir():
        raise UserError(f"{workdir}: no checkpoint yet; let `flowtrain train` run to its first one")
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.CheckpointManager(directory, options=_options(read_only=True)) as manager:
        known = sorted(manager.all_steps())
        if not known:
            raise UserError(f"{workdir}: no checkpoint yet; let `flowtrain train` run to its first one")
        chosen = known[-1] if step is None else step
        if chosen not in known:
            raise UserError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, known))}")
        network = make_network(run.recipe.model, run.latent_shape, len(run.classes))
        target = with_sharding(network.abstract, SingleDeviceSharding(jax.local_devices()[0]))
        restored = manager.restore(chosen, args=ocp.args.Composite(**{weights: ocp.args.StandardRestore(target)}))
    return TrainedModel(run, chosen, weights, network.velocity, restored[weights])
