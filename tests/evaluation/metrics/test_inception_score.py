"""The Inception Score against its definition, sample by sample, and closed forms."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import scipy.special

from evaluation.metrics.inception_score import (
    ScoreSums,
    consecutive_splits,
    inception_score,
    shuffled_splits,
    split_sums,
)
from schemas.errors import UserError


def logits(n: int, classes: int = 12) -> np.ndarray:
    return (3 * np.random.default_rng(0).normal(size=(n, classes))).astype(np.float32)


def by_definition(rows: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of p(y|x) from the mean p."""
    p = scipy.special.softmax(rows.astype(np.float64), axis=1)
    return float(np.exp(np.mean([scipy.special.rel_entr(row, p.mean(axis=0)).sum() for row in p])))


def test_equals_the_definition() -> None:
    rows = logits(70)
    assert ScoreSums.of(rows).score() == pytest.approx(by_definition(rows), rel=1e-13)


@pytest.mark.parametrize("cuts", [[1], [3, 4, 60], [35]])
def test_sums_merge_in_any_grouping(cuts: list[int]) -> None:
    rows = logits(70)
    merged = reduce(add, map(ScoreSums.of, np.split(rows, cuts)), ScoreSums.zero(12))
    assert merged.n == 70
    assert merged.score() == pytest.approx(by_definition(rows), rel=1e-13)
    backwards = reduce(add, map(ScoreSums.of, np.split(rows, cuts)[::-1]))
    assert backwards.score() == pytest.approx(merged.score(), rel=1e-14)


def test_sure_and_evenly_spread_classes_score_their_number_and_unsure_ones_1() -> None:
    sure = 1e4 * np.eye(7)[np.arange(70) % 7]  # the other classes have probability 0, not NaN
    assert ScoreSums.of(sure).score() == pytest.approx(7, rel=1e-14)
    assert ScoreSums.of(sure[::7]).score() == pytest.approx(1, rel=1e-14)
    assert ScoreSums.of(np.zeros((5, 7))).score() == pytest.approx(1, rel=1e-14)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    rows = logits(40).astype(np.float64)
    expected = ScoreSums.of(rows).score()
    for shift in (-800.0, 5e3):
        assert ScoreSums.of(rows + shift).score() == pytest.approx(expected, rel=1e-10)


def test_adm_splits_are_in_order_and_the_last_is_shorter() -> None:
    rows = logits(23)
    mean, deviation = inception_score(list(split_sums(rows, consecutive_splits(23, 10)).values()))
    scores = [by_definition(part) for part in (rows[:10], rows[10:20], rows[20:])]
    assert mean == pytest.approx(np.mean(scores), rel=1e-13)
    assert deviation == pytest.approx(np.std(scores), rel=1e-10)
    np.testing.assert_array_equal(np.bincount(consecutive_splits(12001)), [5000, 5000, 2001])


def test_shuffled_splits_are_cuts_of_a_seeded_order() -> None:
    for n, splits in ((10, 10), (23, 4), (100, 3)):
        order = np.random.RandomState(2020).permutation(n)
        found = shuffled_splits(n, splits)
        for number in range(splits):
            expected = order[number * n // splits : (number + 1) * n // splits]
            np.testing.assert_array_equal(np.flatnonzero(found == number), np.sort(expected))
    assert (shuffled_splits(50, 5) != shuffled_splits(50, 5, seed=1)).any()


def test_bad_input() -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            ScoreSums.of(np.array([[0.0, value]]))
    with pytest.raises(ValueError, match=r"must be \(n, classes\)"):
        ScoreSums.of(np.zeros(4))
    with pytest.raises(ValueError, match="numbers of classes differ: 3 and 4"):
        _ = ScoreSums.zero(3) + ScoreSums.zero(4)
    with pytest.raises(ValueError, match="5 logits, but the splits of 4"):
        split_sums(np.zeros((5, 2)), consecutive_splits(4))
    with pytest.raises(UserError, match="needs at least 10 samples, not 9"):
        shuffled_splits(9)
    with pytest.raises(UserError, match="at least 1 sample"):
        inception_score([])
    with pytest.raises(UserError, match="in every split"):
        inception_score([ScoreSums.of(np.zeros((2, 3))), ScoreSums.zero(3)])
