"""Which records, in which order: every one once an epoch, the same for all who ask."""

import hashlib

import numpy as np
import pytest

from flowtrain.records.order import Selection, batch_records, epoch_order, holdout_records
from schemas.errors import UserError

RECORDS = 20


def test_every_record_is_seen_once_an_epoch_in_another_order():
    stream = [batch_records(0, batch, 8, Selection.all(RECORDS)) for batch in range(10)]
    epoch, index = (np.concatenate(parts) for parts in zip(*stream, strict=True))
    orders = [tuple(index[epoch == number]) for number in range(4)]
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)
    assert len(set(orders)) == 4
    assert (epoch_order(1, 0, RECORDS) != epoch_order(0, 0, RECORDS)).any()


def test_the_order_is_that_of_the_first_release():
    """A run that was begun with an older release goes on with the same batches."""
    digest = hashlib.sha256()
    for seed, batch_size, records in ((0, 8, 20), (7, 256, 1000), (3, 64, 50), (2**32 - 1, 16, 17)):
        for batch in (0, 1, 5, 123):
            for array in batch_records(seed, batch, batch_size, Selection.all(records)):
                digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest() == "913118add0a547eb04fe2d4dbd4c49575750c043b0aa72704015eb37ca014399"


def test_a_holdout_parts_the_records_by_chance_and_for_good():
    train, held = holdout_records(1000, 100)
    assert len(held) == 100
    assert sorted([*train, *held]) == list(range(1000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert 5 < (held < 100).sum() < 20
    assert set(held) < set(holdout_records(1000, 101)[1])
    assert hashlib.sha256(held.astype("<i8").tobytes()).hexdigest()[:16] == HELD
    everything, nothing = holdout_records(5, 0)
    assert everything.tolist() == [0, 1, 2, 3, 4]
    assert nothing.size == 0


HELD = "33a16b4300407a11"  # a run that goes on must keep back the same ones


def test_a_selection_is_visited_like_a_dataset_of_its_own():
    selection = Selection.choose(30, holdout=10)
    _, held = holdout_records(30, 10)
    for batch in range(6):
        epoch, index = batch_records(4, batch, 8, selection)
        same_epoch, place = batch_records(4, batch, 8, Selection.all(20))
        np.testing.assert_array_equal(epoch, same_epoch)
        np.testing.assert_array_equal(index, selection.index[place])
        assert not set(index) & set(held)


def test_overfitting_takes_the_first_records_of_those_that_are_trained_on():
    train, _ = holdout_records(30, 10)
    assert Selection.choose(30, holdout=10, overfit=3).index.tolist() == train[:3].tolist()
    assert Selection.choose(30, overfit=3).index.tolist() == [0, 1, 2]
    # a batch of several epochs
    epoch, index = batch_records(0, 0, 8, Selection.choose(30, overfit=3))
    assert [sorted(index[epoch == number]) for number in (0, 1)] == [[0, 1, 2]] * 2
    assert epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_the_record_after_another_one_is_the_next_of_the_selection():
    selection = Selection(np.array([2, 5, 9]))
    assert selection.after(np.array([9, 2, 5])).tolist() == [2, 5, 9]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"holdout": 30}, "train.holdout=30 leaves none of 30 records to train on; lower it"),
        (
            {"holdout": 10, "overfit": 21},
            "train.overfit=21, but there are 20 records to train on; lower it",
        ),
        ({"overfit": 0}, "train.overfit=0, but there are 30 records to train on; lower it"),
    ],
)
def test_selections_of_nothing_are_refused(options: dict[str, int], line: str):
    with pytest.raises(UserError) as caught:
        Selection.choose(30, **options)
    assert str(caught.value) == line
