"""Folders of arrays by step, through an orbax manager, for checkpoints and snapshots.

`DIRECTORY/STEP/ITEM`. A save is asynchronous and is committed by a rename, and a deletion begins
with one, so whatever a killed process leaves, a folder with the name of a step is whole.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policy

from flowtrain.devices.hosts import is_main
from flowtrain.state.faults import check_room, damage_faults, silence, storage_faults

LOSS = "loss"
DELETED = "deleted"  # from here folders are removed file by file


class StepFolders:
    """The folders of one directory. A context: leaving it waits for what is being saved.

    Args:
        directory: where they are; made if it is not there, unless `read_only`.
        kind: what is in a folder, for errors: "checkpoint".
        preserve: which of them stay when another is saved; default: all.
        read_only: nothing is written or removed, as another process may be writing.

    Raises:
        UserError: from all that writes, and on leaving: the disk is full (leave it then, and open
            it again); from `read`: files are damaged.
    """

    def __init__(
        self,
        directory: Path,
        kind: str,
        *,
        preserve: policy.PreservationPolicy | None = None,
        read_only: bool = False,
    ):
        silence()
        self._directory, self._kind, self._read_only = directory.resolve(), kind, read_only
        self._fault = (
            f"{directory.parent}: the {kind} could not be saved",
            "those before it are whole",
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preserve,
            best_fn=lambda metrics: metrics[LOSS],  # without it orbax writes no metrics to disk
            best_mode="min",
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else DELETED,
            read_only=read_only,
        )
        with storage_faults(*self._fault):
            self._remove_deleted()
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_faults(*self._fault):
            self._manager.close()
            self._remove_deleted()

    def _remove_deleted(self) -> None:
        if is_main() and not self._read_only:
            shutil.rmtree(self._directory / DELETED, ignore_errors=True)

    def wait(self) -> None:
        """Until what was begun to save is on disk."""
        with storage_faults(*self._fault):
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Those there are, in order; waits for one that is being saved."""
        self.wait()
        return sorted(self._manager.all_steps())

    def write(
        self,
        step: int,
        arrays: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        loss: float | None = None,
    ) -> None:
        """Begin to save; on return the arrays are copied, and buffers may be donated.

        Args:
            step: one that there is no folder of.
            arrays: by item, trees of arrays.
            notes: by item, what JSON can say.
            loss: what `preserve` finds as `metrics[LOSS]`.
        """
        self.wait()
        self._remove_deleted()
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonSave(note) for name, note in (notes or {}).items()}
        with storage_faults(*self._fault):
            check_room(self._directory, dict(arrays), *self._fault)
            metrics = None if loss is None else {LOSS: float(loss)}
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def read(
        self, step: int, targets: Mapping[str, Any], notes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Some items of a step alone; `targets` are ShapeDtypeStructs with shardings."""
        self.wait()
        items: dict[str, Any] = {
            name: ocp.args.StandardRestore(tree) for name, tree in targets.items()
        }
        items |= {name: ocp.args.JsonRestore() for name in notes}
        folder = self._directory / str(step)
        remedy = f"if its files are damaged, delete {folder} and repeat the command"
        with damage_faults(f"{folder}: cannot read the {self._kind}", remedy):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in items}

    def cut(self, step: int) -> None:
        """Delete those after `step`, the last one first: the run goes on from there."""
        for later in reversed(self.steps()):
            if later > step:
                self._manager.delete(later)
        self._remove_deleted()
