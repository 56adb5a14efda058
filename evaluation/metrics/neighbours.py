"""Nearest neighbours in feature space: precision, recall, density, coverage, memorisation.

Results are those of exact float64 distances, whatever the block size and device. A block of pairs
is screened in float32 (`evaluation.metrics.row_blocks.bounds`). Pairs that this leaves undecided,
some tens a row, are decided by sum((a - b)^2) in float64, which is exactly 0 for equal rows and the
same for (a, b) as for (b, a), so that ties are ties. Clusters that are very tight beside their
distance from the mean leave many pairs undecided: the result is then as exact, and slow.

Memory: a few blocks of rows and a few arrays of (block, block); features may be a `np.memmap`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.features import Features, check_features, check_same_dim
from evaluation.metrics.row_blocks import (
    GROUP,
    Points,
    RowBlock,
    RowSet,
    bounds,
    exact_distances,
    pair_blocks,
)

BLOCK = 4096
_SLACK = 2.0**-20  # of a squared distance that is passed to float32

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


@dataclass(frozen=True)
class Manifold:
    """Balls around `features` (n, d), to the k-th nearest other row: `radii` (n,) float64."""

    features: Features
    radii: _Float
    k: int

    @classmethod
    def of(cls, features: Features, k: int, block: int = BLOCK) -> Self:
        """Measure the radii; raises as `kth_distances`."""
        return cls(features, kth_distances(features, k, block), k)


def kth_distances(features: Features, k: int, block: int = BLOCK) -> _Float:
    """Distances (n,) float64 of the rows of `features` (n, d) to their k-th nearest other row.

    A row is not its own neighbour, but an equal row elsewhere is one, at distance 0.

    Raises:
        ValueError: k or block below 1, not (n, d), NaN or infinity.
        UserError: no more than k rows.
    """
    _check_numbers(k, block)
    mean = check_features(features, k + 1, f"a distance to neighbour {k}")
    bests = _search_within(RowSet(features, mean, block), k)
    return np.concatenate([best.distances[:, -1] for best in bests])


def nearest(queries: Features, data: Features, k: int, block: int = BLOCK) -> tuple[_Int, _Float]:
    """Indices and distances (q, k) of the k rows of `data` (n, d) nearest to `queries` (q, d).

    The nearest come first.

    Of rows at equal distance those of lower index come first. For the memorisation check: samples
    against the training set.

    Raises:
        ValueError: k or block below 1, not (n, d), NaN or infinity, dimensions differ, no query.
        UserError: fewer than k rows of data.
    """
    _check_numbers(k, block)
    check_same_dim(queries, data)
    check_features(queries, 1, "a search for neighbours")
    mean = check_features(data, k, f"a search for {k} neighbours")
    found = list(_search(RowSet(queries, mean, block), RowSet(data, mean, block), k))
    indices = np.concatenate([best.indices for best in found])
    return indices, np.concatenate([best.distances for best in found])


def precision_recall(
    real: Features | Manifold, fake: Features | Manifold, k: int = 3, block: int = BLOCK
) -> tuple[float, float]:
    """Improved precision and recall, Kynkäänniemi et al. 2019, with the balls of ADM's evaluator.

    Precision is the share of `fake` (m, d) within the k-nearest-neighbour ball of any of `real` (n,
    d), recall the share of `real` within the ball of any of `fake`; a ball holds its surface (<=),
    as in evaluations/evaluator.py of openai/guided-diffusion and in torch-fidelity. (The former
    takes distances in float16 unless they overflow; here they are exact.) ADM's reference batches
    hold 10,000 real images for this, its sample batches 50,000.

    Raises:
        ValueError: dimensions differ, a `Manifold` of another k, NaN or infinity, k or block below
            1.
        UserError: no more than k rows in either.
    """
    _check_pair(real, fake, k, k + 1)
    real, fake = _manifold(real, k, block), _manifold(fake, k, block)
    around_real = _Balls(real.radii, len(fake.features), on_rows=True, closed=True)
    around_fake = _Balls(fake.radii, len(real.features), on_rows=False, closed=True)
    _tally(real.features, fake.features, [around_real, around_fake], block)
    return float((around_real.count > 0).mean()), float((around_fake.count > 0).mean())


def density_coverage(
    real: Features | Manifold, fake: Features, k: int = 5, block: int = BLOCK
) -> tuple[float, float]:
    """Density and coverage, Naeem et al. 2020 (arXiv:2002.09797).

    With the balls of `real` (n, d) to their k-th neighbours: density is the number of balls that a
    row of `fake` (m, d) lies in, over k, averaged; it may exceed 1. Coverage is the share of balls
    that hold a row of `fake`. A ball is open (<), as in the authors' package prdc, so one around k
    + 1 equal rows holds nothing.

    Raises:
        ValueError: dimensions differ, a `Manifold` of another k, NaN or infinity, k or block below
            1.
        UserError: no more than k rows of `real`, no row of `fake`.
    """
    _check_pair(real, fake, k, 1)
    real = _manifold(real, k, block)
    balls = _Balls(real.radii, len(fake), on_rows=True, closed=False)
    _tally(real.features, fake, [balls], block)
    return float(balls.count.mean() / k), float(balls.hit.mean())


def _check_numbers(k: int, block: int) -> None:
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")


def _check_pair(real: Features | Manifold, fake: Features | Manifold, k: int, least: int) -> None:
    """Before any work: `fake` is searched for last."""
    real, fake = (part.features if isinstance(part, Manifold) else part for part in (real, fake))
    check_same_dim(real, fake)
    search = f"a distance to neighbour {k}"
    check_features(real, k + 1, search)
    check_features(fake, least, search if least > 1 else "a comparison of features")


def _manifold(features: Features | Manifold, k: int, block: int) -> Manifold:
    if not isinstance(features, Manifold):
        return Manifold.of(features, k, block)
    if features.k != k:
        raise ValueError(f"the manifold has radii to neighbour {features.k}, not {k}")
    return features


# Neighbours


class _Screen(NamedTuple):
    """Bounds of squared distances of data (p,) and queries (q,).

    `lower` (p, q), and the least upper bound of each query in every group of data rows (p / 16, q).
    One made the other way round holds the same distances with data and queries exchanged.
    """

    lower: jax.Array
    upper: jax.Array


@jax.jit
def _screen(data: Points, queries: Points) -> _Screen:
    return _grouped(*bounds(data, queries, exclude_self=False))


@jax.jit
def _screen_both(one: Points, two: Points) -> tuple[_Screen, _Screen]:
    """Within one set, without a row as its own neighbour: for queries two and queries one."""
    lower, upper = bounds(one, two, exclude_self=True)
    return _grouped(lower, upper), _grouped(lower.T, upper.T)


def _grouped(lower: jax.Array, upper: jax.Array) -> _Screen:
    return _Screen(lower, upper.reshape(-1, GROUP, upper.shape[1]).min(axis=1))


@jax.jit
def _candidates(lower: jax.Array, bound: jax.Array) -> jax.Array:
    return (lower <= bound[None, :]) & (lower < jnp.inf)


@dataclass
class _Best:
    """The k nearest so far of each of q queries, by distance, then by index; (q, k) each."""

    indices: _Int
    distances: _Float

    @classmethod
    def none(cls, q: int, k: int) -> Self:
        return cls(np.full((q, k), np.iinfo(np.int64).max), np.full((q, k), np.inf))

    def offer(self, query: _Int, index: _Int, distance: _Float) -> None:
        """Take in pairs (pairs,) of queries and data rows that were not offered before."""
        q, k = self.distances.shape
        queries = np.concatenate([np.repeat(np.arange(q), k), query])
        indices = np.concatenate([self.indices.ravel(), index])
        distances = np.concatenate([self.distances.ravel(), distance])
        order = np.lexsort((indices, distances, queries))
        first = np.searchsorted(queries[order], np.arange(q))
        kept = order[first[:, None] + np.arange(k)]
        self.indices, self.distances = indices[kept], distances[kept]


def _search(queries: RowSet, data: RowSet, k: int) -> Iterator[_Best]:
    """The k nearest rows of data, block by block of queries."""
    for block in queries.blocks():
        best = _Best.none(len(block.rows), k)
        for other in data.blocks():
            _update(best, block, other, _screen(other.points, block.points))
        yield best


def _search_within(side: RowSet, k: int) -> list[_Best]:
    """The k nearest other rows for every block; a pair of blocks is screened once for both."""
    bests = [_Best.none(size, k) for size in side.sizes()]
    for i, one in enumerate(side.blocks()):
        for j, two in enumerate(side.blocks(first=i), start=i):
            of_two, of_one = _screen_both(one.points, two.points)
            _update(bests[i], one, two, of_one)
            if i != j:
                _update(bests[j], two, one, of_two)
    return bests


def _update(best: _Best, queries: RowBlock, data: RowBlock, screen: _Screen) -> None:
    """Take in a block of data. Blocks must come in ascending order."""
    (q, k), minima = best.distances.shape, np.asarray(screen.upper)
    # No true k-th distance is above the k-th of upper bounds of k different rows, nor above the one
    # already found.
    bound = np.full(minima.shape[1], np.inf, np.float32)
    if len(minima) >= k:
        bound = np.partition(minima, k - 1, axis=0)[k - 1].copy()
    found = (np.square(best.distances[:, -1]) * (1 + _SLACK)).astype(np.float32)
    bound[:q] = np.minimum(bound[:q], found)
    index, query = np.nonzero(np.asarray(_candidates(screen.lower, jnp.asarray(bound)))[:, :q])
    for index_part, query_part in pair_blocks(index, query, data.rows.shape[1]):
        # Rows come in ascending order: with k equal ones found, no later one is better. Images that
        # are all the same would otherwise take a distance for every pair.
        still = best.distances[query_part, -1] > 0
        index_part, query_part = index_part[still], query_part[still]
        if len(index_part):
            distance = exact_distances(queries.rows[query_part], data.rows[index_part])
            best.offer(query_part, index_part + data.start, distance)


# Points within balls


class _Balls:
    """A tally, over blocks of pairs, of which points lie in the balls around the other set's rows.

    `count` (points,): balls that hold the point. `hit` (balls,): whether the ball holds any point.
    The balls are around the rows of a block of pairs (`on_rows`) or around its columns; `closed`
    ones hold their surface.
    """

    def __init__(self, radii: _Float, points: int, on_rows: bool, closed: bool):
        self.radii, self.on_rows, self.closed = radii, on_rows, closed
        self.count = np.zeros(points, np.int64)
        self.hit = np.zeros(len(radii), bool)

    def squared_radii(self, block: RowBlock) -> NDArray[np.float32]:
        """(p, 1) or (1, q), with zeros where the block is padded."""
        squared = np.zeros(len(block.points.x), np.float32)
        squared[: len(block.rows)] = np.square(
            self.radii[block.start : block.start + len(block.rows)]
        )
        return squared[:, None] if self.on_rows else squared[None, :]

    def add(self, rows: RowBlock, columns: RowBlock, verdict: "_Verdict") -> None:
        centres, others = (rows, columns) if self.on_rows else (columns, rows)
        n, m = len(centres.rows), len(others.rows)
        of_row, of_column = np.asarray(verdict.of_row), np.asarray(verdict.of_column)
        of_centre, of_other = (of_row, of_column) if self.on_rows else (of_column, of_row)
        self.hit[centres.start : centres.start + n] |= of_centre[:n] > 0
        self.count[others.start : others.start + m] += of_other[:m]
        i, j = np.nonzero(np.asarray(verdict.undecided))
        ball, point = (i, j) if self.on_rows else (j, i)
        for ball_part, point_part in pair_blocks(ball, point, rows.rows.shape[1]):
            distance = exact_distances(centres.rows[ball_part], others.rows[point_part])
            radius = self.radii[ball_part + centres.start]
            inside = distance <= radius if self.closed else distance < radius
            self.hit[ball_part[inside] + centres.start] = True
            np.add.at(self.count, point_part[inside] + others.start, 1)


class _Verdict(NamedTuple):
    """Pairs surely inside, by row (p,) and by column (q,), and the undecided pairs (p, q)."""

    of_row: jax.Array
    of_column: jax.Array
    undecided: jax.Array


@jax.jit
def _judge(rows: Points, columns: Points, squared_radii: Sequence[jax.Array]) -> list[_Verdict]:
    lower, upper = bounds(rows, columns, exclude_self=False)

    def verdict(squared: jax.Array) -> _Verdict:
        squared = jnp.broadcast_to(squared, lower.shape)
        inside = upper < squared * (1 - _SLACK)
        undecided = ~inside & (lower <= squared * (1 + _SLACK)) & (lower < jnp.inf)
        return _Verdict(inside.sum(axis=1), inside.sum(axis=0), undecided)

    return [verdict(squared) for squared in squared_radii]


def _tally(rows: Features, columns: Features, balls: Sequence[_Balls], block: int) -> None:
    mean = check_features(rows, 1, "a comparison of features")
    for one in RowSet(rows, mean, block).blocks():
        for two in RowSet(columns, mean, block).blocks():
            radii = [
                jnp.asarray(part.squared_radii(one if part.on_rows else two)) for part in balls
            ]
            for part, verdict in zip(balls, _judge(one.points, two.points, radii), strict=True):
                part.add(one, two, verdict)
