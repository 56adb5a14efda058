"""Batches of a latent dataset, by number, through Grain.

Reading by batch instead of by record is what makes Grain fast here: per-record Python dominates
otherwise.
"""

from typing import Literal

import grain
import numpy as np
from numpy.typing import NDArray

from flowtrain.records.counter import Purpose, host_bits
from flowtrain.records.order import Selection, batch_records
from flowtrain.records.reader import DamagedRecordsError, Index, LatentReader, Records
from schemas.columns import Columns
from schemas.config import Flip
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.pixels import from_uint8

__all__ = ["BatchReader", "LatentReader", "OnCorrupt", "Selection", "make_loader", "seek"]

OnCorrupt = Literal["stop", "skip"]

_THREADS = 4  # that read batches ahead, each of them record after record
_AHEAD = 8  # batches


class BatchReader:
    """Batch number -> arrays, a pure function of (dataset, seed, batch size); thread-safe.

    Args:
        reader: the records, from `flowtrain.records.cache.open_records`.
        batch_size: records of a whole batch.
        seed: of order and mirroring.
        flip: whether to choose between a record and its mirror image, as `train.flip` has it.
        selection: the records to use; None for all.
        rows: those of a batch to read, of a process among several; None for all.
        on_corrupt: what a damaged record does. "stop": it raises. "skip": the next intact one of
            the selection takes its place, with an index, and so with draws, of its own.
    """

    def __init__(
        self,
        reader: Records,
        *,
        batch_size: int,
        seed: int,
        flip: Flip,
        selection: Selection | None = None,
        rows: slice | None = None,
        on_corrupt: OnCorrupt = "stop",
    ):
        self.reader, self.batch_size, self.seed = reader, batch_size, seed
        self.flip = flip != "never" and reader.manifest.flips
        self._mirror = flip == "always" and not self.flip
        assert not self._mirror or reader.manifest.layout is Layout.IMAGE, "latents have no mirror"
        self.selection = Selection.all(len(reader)) if selection is None else selection
        self.rows = slice(None) if rows is None else rows
        self._on_corrupt = on_corrupt
        self._damaged: dict[tuple[int, bool], str] = {}

    @property
    def damaged(self) -> dict[int, str]:
        """What was skipped so far: the line about each damaged record, by its index."""
        found = sorted(dict(self._damaged).items(), key=lambda item: (item[0][0], not item[0][1]))
        return {index: line for (index, _), line in found}

    def __call__(self, batch: int) -> Columns:
        """Arrays of the rows n of one batch.

        Returns:
            `index`, `epoch`, `label`: (n,) int32. `index` counts the records of the dataset in
            shard order. One (n, h, w, c) array for each stored tensor in its stored dtype; pixels
            as float32 in [-1, 1].

        Raises:
            UserError: a record is damaged and none is to be skipped, none is intact, or the storage
                fails.
        """
        epoch, index = batch_records(self.seed, int(batch), self.batch_size, self.selection)
        epoch, index = epoch[self.rows], index[self.rows]
        read = self._read_all if self._on_corrupt == "stop" else self._read_intact
        index, arrays = read(epoch, index)
        arrays = model_tensors(arrays, self.reader.manifest.layout)
        return arrays | {"index": index.astype(np.int32), "epoch": epoch.astype(np.int32)}

    def mirrored(self, epoch: NDArray[np.int64], index: Index) -> NDArray[np.bool_]:
        """(n,) whether the mirror image of each record is taken in its epoch."""
        if not self.flip and not self._mirror:
            return np.zeros(len(index), np.bool_)
        return (host_bits(self.seed, Purpose.FLIP, epoch, index) & np.uint64(1)).astype(np.bool_)

    def _read_all(self, epoch: NDArray[np.int64], index: Index) -> tuple[Index, Columns]:
        return index, self._gather(index, self.mirrored(epoch, index))

    def _read_intact(self, epoch: NDArray[np.int64], index: Index) -> tuple[Index, Columns]:
        """A stand-in follows from the dataset alone, not from what was read before."""
        moves = np.zeros(len(index), np.int64)
        while moves.max() <= len(self.selection):
            mirrored = self.mirrored(epoch, index)
            known = self._known(index, self._stored(mirrored))
            if known.any():
                index = np.where(known, self.selection.after(index), index)
                moves += known
                continue
            try:
                return index, self._gather(index, mirrored)
            except DamagedRecordsError as error:
                self._damaged.update(error.damaged)
        raise UserError(
            f"{self.reader.directory}: no record is intact; `flowtrain data verify` says how to "
            "mend it"
        )

    def _stored(self, mirrored: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of which records the stored mirror image is read."""
        return np.zeros_like(mirrored) if self._mirror else mirrored

    def _gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """The records, or their mirror images, from where these are."""
        columns = self.reader.gather(index, self._stored(mirrored))
        if not self._mirror:
            return columns
        image = columns["image"]
        return columns | {
            "image": np.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
        }

    def _known(self, index: Index, mirrored: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of these were found to be damaged before."""
        if not self._damaged:
            return np.zeros(len(index), np.bool_)
        return np.array(
            [pair in self._damaged for pair in zip(index.tolist(), mirrored.tolist(), strict=True)]
        )


def model_tensors(columns: Columns, layout: Layout) -> Columns:
    """What a model is fed: columns as they are stored, but pixels as float32 in [-1, 1]."""
    if layout != Layout.IMAGE:
        return columns
    return columns | {"image": from_uint8(columns["image"])}


def make_loader(batches: BatchReader, steps: int) -> grain.DatasetIterator[Columns]:
    """An iterator over `steps` batches, read ahead in threads.

    Its state, `{"next_index": step}`, is the number of batches handed out, not of those read ahead.
    """
    dataset = grain.MapDataset.range(steps).map(batches)
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        )
    )


def seek(loader: grain.DatasetIterator[Columns], step: int) -> None:
    """Move a loader so that the next batch is number `step`."""
    loader.set_state({"next_index": step})
