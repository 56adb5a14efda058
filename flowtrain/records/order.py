"""Which records make batch b: arithmetic on the seed, whatever was read before.

The epochs' permutations are laid end to end and cut into batches, so every record of the selection
is seen once an epoch, no record is dropped, and the position of the loader is the step number and
nothing else.
"""

import functools
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flowtrain.records.counter import Purpose, host_bits
from schemas.errors import UserError


@dataclass(frozen=True, eq=False)
class Selection:
    """The records of a dataset that are used.

    Attributes:
        index: (n,) int64, strictly increasing, n > 0: their indices in dataset order.
    """

    index: NDArray[np.int64]

    @classmethod
    def all(cls, records: int) -> Self:
        """Every record of a dataset of `records`."""
        return cls(np.arange(records))

    @classmethod
    def choose(cls, records: int, *, holdout: int = 0, overfit: int | None = None) -> Self:
        """The training records: all but `holdout`, or the first `overfit` of those.

        Raises:
            UserError: nothing is left to train on, or fewer records than `overfit`.
        """
        if holdout >= records:
            raise UserError(
                f"train.holdout={holdout} leaves none of {records} records to train on; lower it"
            )
        train, _ = holdout_records(records, holdout)
        if overfit is not None and not 1 <= overfit <= len(train):
            raise UserError(
                f"train.overfit={overfit}, but there are {len(train)} records to train on; lower it"
            )
        return cls(train[:overfit])

    def __len__(self) -> int:
        return len(self.index)

    def after(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next record of the selection after each of `index`; after the last, the first."""
        return self.index[(np.searchsorted(self.index, index) + 1) % len(self.index)]


def holdout_records(records: int, holdout: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted int64 indices: of the records to train on, and of the `holdout` kept back.

    They depend on the two numbers alone, so that runs of all seeds keep back the same records;
    those of a smaller holdout are among those of a larger one.
    """
    drawn = np.argsort(host_bits(0, Purpose.HOLDOUT, 0, np.arange(records)), kind="stable")
    return np.sort(drawn[holdout:]), np.sort(drawn[:holdout])


@functools.lru_cache(
    maxsize=2
)  # a batch touches two epochs at most, unless it is larger than the selection
def epoch_order(seed: int, epoch: int, records: int) -> NDArray[np.int64]:
    """The permutation of `records` places in which an epoch visits them."""
    bits = host_bits(seed, Purpose.ORDER, epoch, np.arange(records))
    return np.argsort(bits, kind="stable")  # the bits are distinct: a hash that is a bijection


def batch_records(
    seed: int, batch: int, batch_size: int, selection: Selection
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(epoch, index), each (batch_size,), of a batch's records; indices of the dataset."""
    position = batch * batch_size + np.arange(batch_size)
    epoch, visit = np.divmod(position, len(selection))
    place = np.empty(batch_size, np.int64)
    for one in np.unique(epoch):
        here = epoch == one
        place[here] = epoch_order(seed, int(one), len(selection))[visit[here]]
    return epoch, selection.index[place]
