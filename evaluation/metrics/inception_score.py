"""The Inception Score from logits, as sums that merge in any grouping.

Salimans et al. 2016, "Improved Techniques for Training GANs": the exponential of the mean over
samples of KL(p(y|x) || p(y)), where p(y) is the mean of the p(y|x) of one split. It equals

    exp(mean_x sum_y p(y|x) log p(y|x)  -  sum_y p(y) log p(y)),

so a split is two sums and a count. Two ways of splitting are in use and give different numbers:

- ADM's evaluator (openai/guided-diffusion, evaluations/evaluator.py): 5000 samples a split, in
  order, the last one shorter if it must be; their mean is reported. `consecutive_splits`.
- torch-fidelity (metric_isc.py): ten splits after a shuffle with seed 2020; mean and standard
  deviation. `shuffled_splits`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError

_Float = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreSums:
    """Sums over the n samples of a split: `plogp` of sum_y p log p (nats), `p` (classes,) of p;
    float64.
    """

    n: int
    plogp: float
    p: _Float

    @classmethod
    def zero(cls, classes: int) -> Self:
        """The neutral element."""
        return cls(0, 0.0, np.zeros(classes))

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]]) -> Self:
        """Sums of logits (n, classes), their softmax taken in float64 without overflow.

        Raises:
            ValueError: not two-dimensional, no class, or NaN or infinity.
        """
        rows = np.asarray(logits, np.float64)
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"logits must be (n, classes), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("logits hold NaN or infinity")
        shifted = rows - rows.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        return cls(rows.shape[0], float((p * log_p).sum()), p.sum(axis=0))

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        if self.p.shape != other.p.shape:
            raise ValueError(f"numbers of classes differ: {self.p.shape[0]} and {other.p.shape[0]}")
        return ScoreSums(self.n + other.n, self.plogp + other.plogp, self.p + other.p)

    def score(self) -> float:
        """The Inception Score of this split, from 1 to the number of classes.

        Raises:
            UserError: no sample.
        """
        if self.n == 0:
            raise UserError(
                "the Inception Score needs at least 1 sample in every split; draw more samples"
            )
        q = self.p / self.n
        q = q[q > 0]  # 0 log 0 = 0: a class that no sample could be
        return float(np.exp(self.plogp / self.n - (q * np.log(q)).sum()))


Splits = Mapping[int, ScoreSums]  # by the number of the split


def consecutive_splits(n: int, size: int = 5000) -> NDArray[np.int64]:
    """The split (n,) of each sample, ADM's: `size` samples each in order, the last shorter."""
    return np.arange(n) // size


def shuffled_splits(n: int, splits: int = 10, seed: int = 2020) -> NDArray[np.int64]:
    """The split (n,) of each sample, torch-fidelity's: cut at i * n // splits, after a shuffle.

    Raises:
        UserError: fewer samples than splits.
    """
    if n < splits:
        raise UserError(
            f"an Inception Score of {splits} splits needs at least {splits} samples, not {n}"
        )
    # The old generator is torch-fidelity's; numpy keeps its stream frozen.
    order = np.random.RandomState(seed).permutation(n)
    edges = [i * n // splits for i in range(1, splits)]
    split = np.empty(n, np.int64)
    split[order] = np.searchsorted(edges, np.arange(n), side="right")
    return split


def split_sums(logits: NDArray[np.floating[Any]], split: NDArray[np.int64]) -> Splits:
    """Sums of logits (n, classes) by their split (n,).

    Raises:
        ValueError: as `ScoreSums.of`, or lengths differ.
    """
    if len(logits) != len(split):
        raise ValueError(f"{len(logits)} logits, but the splits of {len(split)}")
    return {int(number): ScoreSums.of(logits[split == number]) for number in np.unique(split)}


def add_splits(first: Splits, second: Splits) -> Splits:
    """Of both sets of samples."""
    both = {number: first[number] + second[number] for number in first.keys() & second.keys()}
    return {**first, **second, **both}


def inception_score(splits: Sequence[ScoreSums]) -> tuple[float, float]:
    """Mean and (population) standard deviation of the scores of the splits, each counting the same.

    Raises:
        UserError: no split, or an empty one.
    """
    if not splits:
        raise UserError("the Inception Score needs at least 1 sample; draw some")
    scores = [split.score() for split in splits]
    return float(np.mean(scores)), float(np.std(scores))
