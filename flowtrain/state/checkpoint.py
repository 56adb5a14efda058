"""Checkpoints on disk: an orbax manager, one item for each part restored alone.

Items: `params`, `opt`, one for each moving average by its name (arrays), `data` (the loader's
state) and `meta` (step, dataset digest, recipe, counters). A save is asynchronous and is committed
by a rename, so a killed process leaves the step before intact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policy

from flowtrain.model import Params, Predict, make_network
from flowtrain.state.ema import MAIN, average_names
from flowtrain.state.folders import LOSS, StepFolders
from flowtrain.state.posthoc import parse_width, reconstruct
from flowtrain.state.snapshots import Snapshots
from flowtrain.state.train_state import TrainState
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.run import CHECKPOINTS_DIR, Run, read_run

PARAMS, OPT, DATA, META = "params", "opt", "data", "meta"


@dataclass(frozen=True)
class _Retention:
    """Which checkpoints stay: the last, those of a period, and the best (orbax's policy)."""

    config: TrainConfig

    def should_preserve(
        self,
        checkpoints: Sequence[policy.PolicyCheckpointInfo],
        *,
        context: policy.PreservationContext,
    ) -> list[bool]:
        """An answer for each checkpoint; without a finite validation loss none is the best."""
        steps = sorted(one.step for one in checkpoints)
        losses = {one.step: one.metrics[LOSS] for one in checkpoints if one.metrics}
        # of equals, the later one
        best = sorted((loss, -step) for step, loss in losses.items() if math.isfinite(loss))
        kept = {*steps[-self.config.keep :], *(-step for _, step in best[: self.config.keep_best])}
        kept.update(_regular(steps, self.config)[-1:])  # what a rollback goes back to
        every = self.config.keep_every
        return [
            one.step in kept or (every is not None and one.step % every == 0) for one in checkpoints
        ]


def _regular(steps: Sequence[int], config: TrainConfig) -> list[int]:
    """Checkpoints in order that an unstopped run of this recipe makes too."""
    return sorted(step for step in steps if step % config.checkpoint_every == 0)


class Checkpoints(StepFolders):
    """A work directory's checkpoints, open for writing: `StepFolders` of `TrainState`."""

    def __init__(self, workdir: Path, config: TrainConfig):
        super().__init__(workdir / CHECKPOINTS_DIR, "checkpoint", preserve=_Retention(config))
        self._config = config

    def latest(self) -> int | None:
        """The newest committed step, or None; waits for one that is being saved."""
        return next(reversed(self.steps()), None)

    def latest_regular(self) -> int | None:
        """The newest that an unstopped run has too, or None; waits for one being saved."""
        return next(reversed(_regular(self.steps(), self._config)), None)

    def save(
        self,
        step: int,
        state: TrainState,
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        validation_loss: float | None = None,
    ) -> None:
        """Begin to save; on return the arrays are copied, and buffers may be donated."""
        counters = {"skipped": int(state.skipped), "streak": int(state.streak)}
        arrays = {PARAMS: state.params, OPT: state.opt, **state.ema}
        self.write(step, arrays, {DATA: dict(data), META: {**meta, **counters}}, validation_loss)

    def restore(
        self, step: int, like: TrainState
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, meta) of `step`; `like` are ShapeDtypeStructs that say where to put it."""
        restored = self.read(step, {PARAMS: like.params, OPT: like.opt, **like.ema}, (DATA, META))
        meta = restored[META]
        if "skipped" not in meta:
            raise UserError(
                f"checkpoint {step} is of an older release of flowtrain; train in a new directory"
            )
        counters = np.array([step, meta["skipped"], meta["streak"]], np.int32)
        count, skipped, streak = jax.jit(
            lambda: tuple(jnp.asarray(counters)), out_shardings=like.step.sharding
        )()
        averages = {name: restored[name] for name in like.ema}
        return (
            TrainState(count, restored[PARAMS], averages, restored[OPT], skipped, streak),
            restored[DATA],
            meta,
        )


def with_sharding(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with places for `restore`: one sharding, or a tree of them."""
    if isinstance(shardings, NamedSharding | SingleDeviceSharding):
        shardings = jax.tree.map(lambda leaf: shardings, abstract)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings,
    )


@dataclass(frozen=True)
class TrainedModel:
    """A run for sampling: `predict(params, x, t, label)` has shapes as `DiT.__call__`."""

    run: Run
    step: int
    weights: str
    predict: Predict
    params: Params

    @property
    def null_class(self) -> int:
        """The label that means "no label"."""
        return len(self.run.classes)


def check_sampling(workdir: Path, step: int | None = None, weights: str = MAIN) -> None:
    """Refuse what `load_for_sampling` would, without reading the checkpoint's arrays."""
    run = read_run(workdir)
    check_weights(workdir, run, weights)
    if parse_width(weights) is not None:
        return  # snapshots tell when they are read
    with StepFolders(workdir / CHECKPOINTS_DIR, "checkpoint", read_only=True) as folders:
        _choose(workdir, folders.steps(), step)


def check_weights(workdir: Path, run: Run, weights: str) -> None:
    """Refuse, by name, weights that the run does not keep. Raises `UserError`."""
    if parse_width(weights) is not None:
        return  # of any width: made of snapshots
    known = (*average_names(run.recipe.train), PARAMS)
    if weights not in known:
        raise UserError(f"{workdir}: no weights {weights!r}; this run keeps {', '.join(known)}")


def _choose(workdir: Path, known: Sequence[int], step: int | None) -> int:
    if not known:
        raise UserError(f"{workdir}: no checkpoint yet; let `flowtrain train` run to its first one")
    chosen = known[-1] if step is None else step
    if chosen not in known:
        raise UserError(
            f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, known))}"
        )
    return chosen


def load_for_sampling(workdir: Path, step: int | None = None, weights: str = MAIN) -> TrainedModel:
    """Restore one set of weights of one checkpoint, and nothing else, onto the first device.

    Args:
        workdir: the work directory of a run, which may be training at this moment.
        step: default: the newest.
        weights: a moving average by its name (`ema`, `ema0.999`, `power0.05`), `params` for the
            parameters themselves, or `posthoc0.13` for the power-function average of that relative
            width, reconstructed from snapshots.

    Raises:
        UserError: no run, no checkpoint, not this step, no such weights, or damaged files.
    """
    run = read_run(workdir)
    network = make_network(run.recipe.model, run.latent_shape, len(run.classes))
    target = with_sharding(network.abstract, SingleDeviceSharding(jax.local_devices()[0]))
    width = parse_width(weights)
    if width is not None:
        with Snapshots(workdir, run.recipe.train, read_only=True) as snapshots:
            chosen, params = reconstruct(snapshots, width, target, step)
        return TrainedModel(run, chosen, weights, network.predict, params)
    check_weights(workdir, run, weights)
    with StepFolders(workdir / CHECKPOINTS_DIR, "checkpoint", read_only=True) as folders:
        chosen = _choose(workdir, folders.steps(), step)
        params = folders.read(chosen, {weights: target})[weights]
    return TrainedModel(run, chosen, weights, network.predict, params)
