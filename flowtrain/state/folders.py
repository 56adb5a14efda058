"""Folders of arrays by step, through an orbax manager, for checkpoints and snapshots.

`DIRECTORY/STEP/ITEM`. A save is asynchronous and is committed by a rename, and a deletion begins
with one, so whatever a killed process leaves, a folder with the name of a step is whole. What a
disk does to it afterwards is told by checksums, which are committed with it.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policy

from flowtrain.devices.hosts import any_process, is_main
from flowtrain.state.checksums import check_items, read_checksums, write_checksums
from flowtrain.state.faults import check_room, damage_faults, silence, storage_faults
from schemas.json_text import parse_json

LOSS = "loss"
METRICS = "metrics"  # the item, and the file in it, of what `preserve` finds
DELETED = "deleted"  # from here folders are removed file by file

_log = logging.getLogger(__name__)
_told: set[Path] = set()  # directories that hold folders without checksums


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
        self._saving = 0  # the step
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
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
        )
        self._check_metrics()
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

    def _add_checksums(self) -> None:
        """To what is being saved: orbax calls it before its rename.

        It does so in the thread of the save, in the main process, when all have written.
        """
        suffix = ocp.path.atomicity_types.TMP_DIR_SUFFIX
        write_checksums(self._directory / f"{self._saving}{suffix}", self._saving)

    def _check_metrics(self) -> None:
        """Whether what `preserve` finds is whole, which orbax reads of every step at once."""
        for path in self._directory.glob(f"*/{METRICS}/{METRICS}"):
            name, remedy = path.parts[-3], f"delete {path.parent} and repeat the command"
            if not name.isdigit():
                continue
            with damage_faults(f"{path}: cannot read it", f"{remedy}; the {self._kind} stays"):
                self._check_metrics_of(int(name), path)

    def _check_metrics_of(self, step: int, path: Path) -> None:
        known = None
        with suppress(ValueError):  # of checksums that are damaged, `read` tells
            known = read_checksums(self._directory / str(step), step)
        with suppress(FileNotFoundError):  # the process that writes has just deleted it
            float(parse_json(path.read_bytes())[LOSS])
            if known is not None:
                check_items(self._directory / str(step), known, [METRICS])

    def _find_damage(self, step: int, items: Sequence[str]) -> str | None:
        """What is wrong with the files of some items; the main process reads them for all."""
        if not is_main():
            return None
        folder = self._directory / str(step)
        try:
            known = read_checksums(folder, step)
            if known is None:
                self._tell_unchecked(step)
            else:
                check_items(folder, known, items)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def _agree(self, damage: str | None) -> None:
        """Refuse damage in every process, or they would wait for each other.

        Raises:
            ValueError: the main process found some.
        """
        if any_process(damage is not None):
            raise ValueError(damage or "the first process found damage")

    def _tell_unchecked(self, step: int) -> None:
        if self._directory not in _told:
            _told.add(self._directory)
            _log.warning(
                "%s: %s %d has no checksums, as it is of an earlier release; it is read unchecked",
                *(self._directory, self._kind, step),
            )

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
            self._saving = step
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
        with (
            damage_faults(f"{folder}: cannot read the {self._kind}", remedy),
            ThreadPoolExecutor(1) as beside,
        ):
            checking = beside.submit(self._find_damage, step, list(items))
            restored, failure = {}, None
            try:
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:
                failure = error
            self._agree(checking.result())  # it names the file, where orbax may not
            if failure is not None:
                raise failure
        return {name: restored[name] for name in items}

    def cut(self, step: int) -> None:
        """Delete those after `step`, the last one first: the run goes on from there."""
        for later in reversed(self.steps()):
            if later > step:
                self._manager.delete(later)
        self._remove_deleted()
