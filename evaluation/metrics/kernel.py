"""The kernel distance (KID) of two feature sets: an unbiased estimate of a squared MMD."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from evaluation.metrics.features import Features, check_features, check_same_dim

_Float = NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    `kid` is the mean; it may be slightly negative when the sets are alike, since the estimate is
    unbiased. `kid_std` is the population standard deviation of a single subset's value, which
    torch-fidelity prints after "±". `kid_sem` is the standard error of `kid` as a mean over
    independent subsets: sample deviation / sqrt(subsets). Subsets of one set overlap once subsets *
    subset_size exceeds it, and the spread between whole sample sets is then larger than `kid_sem`
    says.
    """

    kid: float
    kid_std: float
    kid_sem: float
    subsets: int
    subset_size: int


def squared_mmd(first: Float64[np.ndarray, "m d"], second: Float64[np.ndarray, "n d"]) -> float:
    """Unbiased squared MMD of two sets (m, d), (n, d) under the kernel (x.y / d + 1)^3; float64.

    Gretton et al. 2012, eq. 3, with the kernel of Binkowski et al. 2018. The kernel is not
    invariant to shifts: features with a mean far above their spread lose digits in the difference
    of its sums.
    """

    def kernel_sum(a: _Float, b: _Float) -> tuple[float, float]:
        base = a @ b.T / a.shape[1] + 1.0
        kernel = base * base * base  # numpy's power of 3 is many times slower
        return float(kernel.sum()), float(np.trace(kernel))

    m, n = len(first), len(second)
    within_first, diagonal_first = kernel_sum(first, first)
    within_second, diagonal_second = kernel_sum(second, second)
    between, _ = kernel_sum(first, second)
    same = (within_first - diagonal_first) / (m * (m - 1)) + (within_second - diagonal_second) / (
        n * (n - 1)
    )
    return same - 2.0 * between / (m * n)


def kernel_distance(
    first: Features, second: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """KID of two sets of features, Binkowski et al. 2018, "Demystifying MMD GANs".

    The subsets are torch-fidelity's (metric_kid.py): drawn without replacement, first from `first`,
    then from `second`, by numpy's old generator with its seed, so that on equal features the
    numbers are equal too. The arithmetic is float64 (torch-fidelity's is that of the features,
    which in float32 costs KID digits).

    Args:
        first: (m, d) features, of the samples where torch-fidelity's numbers are to be met.
        second: (n, d).
        subsets: how many, at least 2.
        subset_size: rows drawn from each set, at least 2.
        seed: of the draw.

    Raises:
        ValueError: NaN or infinity, dimensions differ, or `subsets` or `subset_size` below 2.
        UserError: a set smaller than a subset.
    """
    if subsets < 2 or subset_size < 2:
        raise ValueError(
            f"KID takes at least 2 subsets of at least 2 rows, not {subsets} of {subset_size}"
        )
    check_same_dim(first, second)
    for features in (first, second):
        check_features(features, subset_size, f"KID with subsets of {subset_size}")
    generator = np.random.RandomState(seed)  # torch-fidelity's; numpy keeps its stream frozen

    def draw(features: Features) -> _Float:
        return np.asarray(
            features[generator.choice(len(features), subset_size, replace=False)], np.float64
        )

    values = np.array([squared_mmd(draw(first), draw(second)) for _ in range(subsets)])
    error = float(values.std(ddof=1)) / np.sqrt(subsets)
    return KernelDistance(
        float(values.mean()), float(values.std()), float(error), subsets, subset_size
    )
