"""The loss on records that are not trained on: always the same records, noise and t."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from flowtrain.devices.hosts import put_batch, rows
from flowtrain.devices.sharding import batch_sharding
from flowtrain.metrics import loss_by_time
from flowtrain.model import Params
from flowtrain.plan import Plan
from flowtrain.records.data import model_tensors
from flowtrain.records.order import holdout_records
from flowtrain.records.reader import DamagedRecordsError, Index, LatentReader, Records
from flowtrain.step import Setup, make_validation_step
from schemas.columns import Columns


class Validation:
    """Mean loss over fixed records.

    Args:
        setup: of the run.
        records: where they are read.
        index: (m,) which ones.
        batch_size: at once; rounded up to what the mesh can cut.
        mesh: of the run.
    """

    def __init__(self, setup: Setup, records: Records, index: Index, batch_size: int, mesh: Mesh):
        size = min(batch_size, len(index))
        self._size = -(-size // mesh.size) * mesh.size
        self._records, self._index, self._sharding = records, index, batch_sharding(mesh)
        self._rows = rows(self._sharding, self._size)
        self._step = make_validation_step(setup, mesh)
        self._skips = setup.recipe.train.on_corrupt == "skip"

    def __len__(self) -> int:
        return len(self._index)

    def __call__(self, params: Params, key: jax.Array) -> dict[str, float]:
        """`loss`, and `loss_t0.0` ... `loss_t0.9` of the tenths of t that have records."""
        total: Mapping[str, Any] = {}
        for begin in range(0, len(self._index), self._size):
            batch, weight = self._read(begin)
            sums = jax.device_get(self._step(params, batch, weight, key))
            total = {
                name: total.get(name, 0.0) + np.asarray(value, np.float64)
                for name, value in sums.items()
            }
        parts = loss_by_time(total["time_loss"], total["time_count"])
        return {"loss": float(total["loss"] / total["time_count"].sum()), **parts}

    def _read(self, begin: int) -> tuple[dict[str, jax.Array], jax.Array]:
        """One batch, the last one padded with its last record, and (n,) float32 weights.

        The weight is 0 for padding and, where damaged records are skipped, for those.
        """
        index = self._index[begin : begin + self._size]
        weight = np.pad(np.ones(len(index), np.float32), (0, self._size - len(index)))[self._rows]
        index = np.pad(index, (0, self._size - len(index)), mode="edge")[self._rows]
        columns, index, weight = self._gather(index, weight)
        arrays = model_tensors(columns, self._records.manifest.layout)
        arrays |= {"index": index.astype(np.int32), "epoch": np.zeros(len(index), np.int32)}
        batch = put_batch(arrays | {"weight": weight}, self._sharding)
        return batch, batch.pop("weight")

    def _gather(
        self, index: Index, weight: NDArray[np.float32]
    ) -> tuple[Columns, Index, NDArray[np.float32]]:
        try:
            return self._records.gather(index, np.zeros(len(index), np.bool_)), index, weight
        except DamagedRecordsError as error:
            damaged = np.isin(index, [place for place, _ in error.damaged])
            if not self._skips or damaged.all():
                raise
            filled = np.where(damaged, index[~damaged][0], index)
            return self._gather(filled, np.where(damaged, np.float32(0), weight))


def make_validation(
    plan: Plan, setup: Setup, separate: LatentReader | None, mesh: Mesh
) -> Validation | None:
    """On a separate dataset, or on the records held out of the run's; None where neither exists.

    Args:
        plan: of the run.
        setup: of its steps.
        separate: another dataset of the same kind, which goes first.
        mesh: of the run.
    """
    recipe = plan.recipe.train
    if separate is not None:
        records = min(recipe.validation_records, len(separate))
        _, index = holdout_records(len(separate), records)
        return Validation(setup, separate, index, recipe.batch_size, mesh)
    if not recipe.holdout:
        return None
    _, index = holdout_records(len(plan.reader), min(recipe.holdout, recipe.validation_records))
    return Validation(setup, plan.reader, index, recipe.batch_size, mesh)
