"""The training loop: it can be killed at any moment and repeated, and ends with the same bits.

Every number of a step follows from (recipe, dataset, step), on the same kind and number of devices.
What the loop wants from evaluation (pictures and distances while it trains) comes in as a hook.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from flowtrain.devices.ceiling import matmul_ceiling
from flowtrain.devices.hosts import any_process, is_main, on_one_device, put_batch, rows
from flowtrain.devices.sharding import (
    Devices,
    batch_sharding,
    check_batch,
    constrain_batch,
    make_mesh,
    replicated,
    state_shardings,
)
from flowtrain.metrics import Interval
from flowtrain.plan import Plan
from flowtrain.progress import Progress
from flowtrain.records.data import BatchReader, make_loader, seek
from flowtrain.records.reader import LatentReader
from flowtrain.sinks import JsonLines, Sink, TensorBoard
from flowtrain.state.checkpoint import Checkpoints, TrainedModel, with_sharding
from flowtrain.state.ema import MAIN
from flowtrain.state.faults import memory_faults
from flowtrain.state.rollback import Position, write_rollbacks
from flowtrain.state.snapshots import Snapshots
from flowtrain.state.train_state import TrainState
from flowtrain.state.workdir import claimed
from flowtrain.step import Setup, abstract_state, make_init, make_train_step
from flowtrain.validation import make_validation
from schemas.columns import Columns
from schemas.errors import UserError
from schemas.recipes import format_recipe


class PreviewResult(Protocol):
    """What a preview drew and measured: pictures (H, W, 3) uint8 and numbers, by name."""

    @property
    def images(self) -> Mapping[str, np.ndarray]: ...
    @property
    def scalars(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Options:
    """How a run is carried out, which changes nothing of what it computes.

    Attributes:
        devices: to train on; default: all of all hosts.
        fsdp: over how many of them parameters are cut.
        should_stop: asked after every step (with several processes, after every `log_every`); when
            it says yes, the state is saved and the call returns.
        preview: called every `preview.every` steps with the averaged weights of the moment.
        sinks: where metrics go besides metrics.jsonl and TensorBoard; made once the work directory
            is this process's.
        validate_on: a dataset to validate on, in the place of held-out records.
    """

    devices: Devices | None = None
    fsdp: int = 1
    should_stop: Callable[[], bool] = lambda: False
    preview: Callable[[TrainedModel], PreviewResult] | None = None
    sinks: Sequence[Callable[[], Sink]] = ()
    validate_on: LatentReader | None = None


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: at `step`, stopped on request or complete."""

    step: int
    stopped: bool


def train(plan: Plan, workdir: Path, options: Options | None = None) -> Outcome:
    """Train in `workdir`, from its newest checkpoint if there is one, to the recipe's last step.

    Args:
        plan: from `make_plan`.
        workdir: a new directory, or that of the same run.
        options: how.

    Raises:
        UserError: the directory is not this run's, the batch cannot be cut over the devices, the
            loss is no longer finite, a record is damaged, or memory or disk is full.
    """
    options = options or Options()
    recipe = plan.recipe.train
    mesh = make_mesh(options.devices, options.fsdp)
    check_batch(mesh, recipe.batch_size, recipe.accumulate)
    setup = plan.setup(constrain_batch(mesh) if mesh.size > 1 else None)
    with ExitStack() as stack:
        stack.enter_context(memory_faults())
        stack.enter_context(claimed(workdir, plan.run))
        checkpoints = stack.enter_context(Checkpoints(workdir, recipe))
        snapshots = stack.enter_context(Snapshots(workdir, recipe))
        loop = Loop(plan, setup, mesh, workdir, options, checkpoints, snapshots)
        state, position = loop.begin()
        if position.step >= recipe.steps:
            return Outcome(position.step, stopped=False)
        progress = make_progress(plan, mesh, workdir, position.step, options.sinks)
        stack.callback(progress.close)
        return loop.run(state, position, progress)


def make_progress(
    plan: Plan, mesh: Mesh, workdir: Path, start: int, more: Sequence[Callable[[], Sink]] = ()
) -> Progress:
    """Bar and sinks; only the main process writes."""
    recipe = plan.recipe.train
    local_devices = list(mesh.local_devices)
    local_ceiling = matmul_ceiling(plan.recipe.model.dtype, local_devices)
    ceiling = local_ceiling * mesh.size / len(local_devices)
    sinks: list[Sink] = []
    if is_main():  # those that may refuse come first, before files are open
        sinks = [*(make() for make in more), JsonLines(workdir, start), TensorBoard(workdir, start)]
    progress = Progress(
        sinks,
        Interval(recipe.batch_size, plan.flops_per_image, ceiling),
        start=start,
        steps=recipe.steps,
        log_every=recipe.log_every,
        shown=is_main(),
    )
    progress.text(start, "recipe", format_recipe(plan.recipe))
    return progress


@dataclass
class Loop:
    """One call of `train`: what a step needs, and what happens between steps."""

    plan: Plan
    setup: Setup
    mesh: Mesh
    workdir: Path
    options: Options
    checkpoints: Checkpoints
    snapshots: Snapshots
    progress: Progress = field(init=False)
    position: Position = field(init=False)
    loader: grain.DatasetIterator[Columns] = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.plan.recipe.train
        self._placement = batch_sharding(self.mesh)
        everywhere = replicated(self.mesh)
        self._key = jax.jit(lambda: jax.random.key(recipe.seed), out_shardings=everywhere)()
        self._batches = BatchReader(
            self.plan.reader,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            flip=recipe.flip,
            selection=self.plan.selection,
            rows=rows(self._placement, recipe.batch_size),
            on_corrupt=recipe.on_corrupt,
        )
        self._validation = make_validation(
            self.plan, self.setup, self.options.validate_on, self.mesh
        )
        self._reported: set[int] = set()  # damaged records that the user has read of
        # the steps between the last line of metrics and the checkpoint that was restored
        self._interval: Mapping[str, Any] | None = None

    def begin(self) -> tuple[TrainState, Position]:
        """The state to go on from, and where that is; the loader is moved there."""
        step = self.checkpoints.latest()
        if step is None:
            self.snapshots.cut(0)
            self._move(Position())
            return make_init(self.setup, self.mesh)(self._key), self.position
        return self._restore(step)

    def run(self, state: TrainState, position: Position, progress: Progress) -> Outcome:
        """Train to the recipe's last step, or until asked to stop."""
        self.position, self.progress = position, progress
        progress.resume(self._interval)
        recipe = self.plan.recipe.train
        train_step = make_train_step(self.setup, self.mesh if self.mesh.size > 1 else None)
        while self.position.step < recipe.steps:
            begin = time.perf_counter()
            batch = put_batch(next(self.loader), self._placement)
            waited = time.perf_counter() - begin
            state, metrics = train_step(state, batch, self._key)
            self.position = self.position.advanced()
            step = self.position.step
            reads = [progress.push(step, metrics, waited)]
            stopped = self._asked_to_stop(step)
            ends = stopped or step == recipe.steps
            if ends or self._anything_due(step):
                reads.append(progress.flush())
            streaks = {int(read["step"]): int(read["streak"]) for read in reads if read is not None}
            too_bad = [one for one, streak in streaks.items() if streak >= recipe.max_bad_steps]
            if too_bad:
                del state  # there may be no room for two
                state = self._roll_back(too_bad[0])
                continue
            good = streaks.get(step, 0) == 0
            self._between_steps(state, step, stopped=stopped, good=good)
            if stopped:
                return Outcome(step, stopped=step < recipe.steps)
        return Outcome(recipe.steps, stopped=False)

    def _asked_to_stop(self, step: int) -> bool:
        if jax.process_count() > 1 and step % self.plan.recipe.train.log_every:
            return False  # to agree costs a wait for the device
        return any_process(self.options.should_stop())

    def _anything_due(self, step: int) -> bool:
        recipe = self.plan.recipe
        every = [recipe.train.checkpoint_every]
        every += [recipe.train.validate_every] if self._validation else []
        every += [recipe.preview.every] if self._previews else []
        every += [recipe.train.ema_snapshot_every] if recipe.train.ema_power else []
        return any(step % one == 0 for one in every)

    @property
    def _previews(self) -> bool:
        return self.options.preview is not None and self.plan.recipe.preview.every > 0

    def _between_steps(self, state: TrainState, step: int, *, stopped: bool, good: bool) -> None:
        """Validation, snapshot, preview, checkpoint and news of damage, as due after `step`.

        A checkpoint is what a rollback goes back to, so none is made in the middle of bad steps,
        unless the call ends. One that is stopped has little time: it only saves.
        """
        recipe = self.plan.recipe.train
        last = step == recipe.steps
        hurries = stopped and not last
        saves = stopped or last or (good and self._checkpoint_is_due(step))

        loss = None
        if self._validation_is_due(step, saves) and not hurries:
            loss = self._validate(state, step)
        if good and self._snapshot_is_due(step):
            self.snapshots.save(step, state.ema)
        if self._preview_is_due(step) and not hurries:
            self._draw(state, step)
        # The checkpoint comes after them: the step that a killed run goes on from has them all.
        if saves:
            self._save(state, step, loss)
        self._report_damaged_records()

    def _validation_is_due(self, step: int, saves: bool) -> bool:
        """At the end, every `validate_every`, and for each checkpoint that may be the best one."""
        if self._validation is None:
            return False
        recipe = self.plan.recipe.train
        if step == recipe.steps or step % recipe.validate_every == 0:
            return True
        return saves and recipe.keep_best > 0

    def _checkpoint_is_due(self, step: int) -> bool:
        return step % self.plan.recipe.train.checkpoint_every == 0

    def _snapshot_is_due(self, step: int) -> bool:
        recipe = self.plan.recipe.train
        return bool(recipe.ema_power) and step % recipe.ema_snapshot_every == 0

    def _preview_is_due(self, step: int) -> bool:
        if not self._previews:
            return False
        recipe = self.plan.recipe
        return step == recipe.train.steps or step % recipe.preview.every == 0

    def _save(self, state: TrainState, step: int, loss: float | None) -> None:
        with self.progress.paused("save"):
            self.checkpoints.save(step, state, dict(self.loader.get_state()), self._meta(), loss)

    def _report_damaged_records(self) -> None:
        for index, line in self._batches.damaged.items():
            if index not in self._reported:
                self._reported.add(index)
                self.progress.note(f"skipped: {line}")

    def _validate(self, state: TrainState, step: int) -> float:
        validation = self._validation
        assert validation is not None
        with self.progress.paused("validate"):
            raw = validation(state.params, self._key)
            averaged = validation(state.ema[MAIN], self._key)
        averages = {name.replace("loss", "loss_ema", 1): value for name, value in averaged.items()}
        self.progress.validation(step, raw | averages)
        return averaged["loss"]

    def _draw(self, state: TrainState, step: int) -> None:
        assert self.options.preview is not None
        weights = on_one_device(state.ema[MAIN]) if self.mesh.size > 1 else state.ema[MAIN]
        if not is_main():
            return
        try:
            with self.progress.paused("preview"):
                trained = TrainedModel(
                    self.plan.run, step, MAIN, self.plan.network.predict, weights
                )
                drawn = self.options.preview(trained)
        except Exception as error:  # a picture is not worth a run
            message = " ".join(str(error).split())[:200]
            self.progress.note(
                f"step {step}: no preview ({type(error).__name__}: {message}); training goes on"
            )
            return
        for name, picture in drawn.images.items():
            self.progress.image(step, f"preview/{name}", picture)
        self.progress.scalars(
            step, {f"preview/{name}": value for name, value in drawn.scalars.items()}
        )

    def _roll_back(self, bad: int) -> TrainState:
        """The state of the last regular checkpoint, after a streak of bad steps up to step `bad`.

        Raises:
            UserError: there is none, or the run has gone back too often.
        """
        recipe = self.plan.recipe.train
        good = self.checkpoints.latest_regular()
        row = f"{recipe.max_bad_steps} steps in a row" if recipe.max_bad_steps > 1 else "one step"
        event = f"step {bad}: loss or gradient was not finite for {row}"
        times = len(self.position.rollbacks)
        if good is None or times >= recipe.max_rollbacks:
            reason = f"the run has gone back {times} times (train.max_rollbacks)"
            if good is None:
                reason = "there is no checkpoint to go back to"
            raise UserError(
                f"{event}, and {reason}; train in a new directory with a lower "
                "optimizer.learning_rate, a longer optimizer.warmup_steps or optimizer.clip_norm=1"
            )
        position = self.position.back(bad, good)
        self.checkpoints.cut(good)
        self.progress.rewind(good)
        self.progress.note(
            f"{event}; back to the checkpoint of step {good}, past the batches of the steps between"
        )
        state, _ = self._restore(good, position)
        self.progress.resume(self._interval)
        return state

    def _restore(self, step: int, position: Position | None = None) -> tuple[TrainState, Position]:
        """The state of a checkpoint; `position` where it is not the checkpoint's own."""
        state, data, meta = self.checkpoints.restore(step, self._like())
        saved = Position(step, tuple((good, over) for good, over in meta["rollbacks"]))
        same_run = meta["step"] == step and meta["dataset"] == self.plan.run.dataset.digest
        if not same_run or data != {"next_index": saved.batch}:
            raise UserError(
                f"checkpoint {step} belongs to another run or data position ({meta}, {data}); "
                "train elsewhere"
            )
        self._interval = meta.get("interval")  # earlier releases kept none
        self.snapshots.resume(step, state.ema)
        self._move(position or saved)
        return state, self.position

    def _like(self) -> TrainState:
        """The state as ShapeDtypeStructs, each with where its array lives."""
        abstract = abstract_state(self.setup)
        return with_sharding(abstract, state_shardings(self.mesh, abstract))

    def _move(self, position: Position) -> None:
        """Go on from `position`: the loader's next batch is the one after it."""
        self.position = position
        if is_main():
            write_rollbacks(self.workdir, position.rollbacks)
        left = self.plan.recipe.train.steps - position.step
        self.loader = make_loader(self._batches, position.batch + max(left, 0))
        if left > 0:
            seek(self.loader, position.batch)

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.position.step,
            "dataset": self.plan.run.dataset.digest,
            "recipe": self.plan.recipe.model_dump(mode="json"),
            "rollbacks": [list(one) for one in self.position.rollbacks],
            "interval": self.progress.interval(),
        }
