"""Nearest neighbours in feature space, in blocks: precision, recall, density, coverage, and the
memorisation check.

Results are those of exact float64 distances, whatever the block size and device. A block of pairs
is screened by |a|^2 + |b|^2 - 2 a.b in float32, centred on the mean, at JAX's highest precision.
With u = 2^-24 and d dimensions it errs, in any order of summation, by about (d + 10) u (|a|^2 +
|b|^2) at most; `_bounds` allows a little more. Pairs that this leaves undecided, some tens a row,
are decided by sum((a - b)^2) in float64, which is exactly 0 for equal rows and the same for (a, b)
as for (b, a), so that ties are ties. Clusters that are very tight beside their distance from the
mean leave many pairs undecided: the result is then as exact, and slow.

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

BLOCK = 4096
_GROUP = 16  # data rows that share a minimum in the search for a bound
_EXACT_VALUES = 1 << 22  # values of one block of exact differences: 32 MiB
_LARGEST = 1e16  # of a centred feature: squares and their sums stay within float32
_SLACK = 2.0**-20  # of a squared distance that is passed to float32

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


@dataclass(frozen=True)
class Manifold:
    """Balls around `features` (n, d), each reaching to the k-th nearest of the others: `radii` (n,)
    float64.
    """

    features: Features
    radii: _Float
    k: int

    @classmethod
    def of(cls, features: Features, k: int, block: int = BLOCK) -> Self:
        """Measure the radii; raises as `kth_distances`."""
        return cls(features, kth_distances(features, k, block), k)


def kth_distances(features: Features, k: int, block: int = BLOCK) -> _Float:
    """Distance (n,) float64 of every row of `features` (n, d) to the k-th nearest of the other
    rows.

    A row is not its own neighbour, but an equal row elsewhere is one, at distance 0.

    Raises:
        ValueError: k or block below 1, not (n, d), NaN or infinity.
        UserError: no more than k rows.
    """
    _check_numbers(k, block)
    mean = check_features(features, k + 1, f"a distance to neighbour {k}")
    return np.concatenate(
        [best.distances[:, -1] for best in _search_within(_Side(features, mean, block), k)]
    )


def nearest(queries: Features, data: Features, k: int, block: int = BLOCK) -> tuple[_Int, _Float]:
    """The k rows of `data` (n, d) nearest to each of `queries` (q, d), nearest first: indices and
    distances (q, k).

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
    found = list(_search(_Side(queries, mean, block), _Side(data, mean, block), k))
    return np.concatenate([best.indices for best in found]), np.concatenate(
        [best.distances for best in found]
    )


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
    """Density and coverage, Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for
    Generative Models".

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
    check_features(real, k + 1, f"a distance to neighbour {k}")
    check_features(
        fake, least, f"a distance to neighbour {k}" if least > 1 else "a comparison of features"
    )


def _manifold(features: Features | Manifold, k: int, block: int) -> Manifold:
    if not isinstance(features, Manifold):
        return Manifold.of(features, k, block)
    if features.k != k:
        raise ValueError(f"the manifold has radii to neighbour {features.k}, not {k}")
    return features


# Blocks of rows, and the screen of a block of pairs


class _Points(NamedTuple):
    """On the device: `x` (p, d) float32, centred, padded with zeros; squared norms (p,); true rows;
    index of row 0.
    """

    x: jax.Array
    norms: jax.Array
    rows: np.int32
    start: np.int32


@dataclass(frozen=True)
class _Block:
    """Rows of the features from `start` on, as they are and as they go to the screen."""

    start: int
    rows: Features
    points: _Points


@dataclass(frozen=True)
class _Side:
    """One of the two sets of a comparison."""

    features: Features
    centre: _Float
    block: int

    def sizes(self) -> list[int]:
        """Rows of each block, nearly equal, so that little of a block is padding."""
        n = len(self.features)
        size = -(-n // -(-n // self.block))
        return [min(size, n - start) for start in range(0, n, size)]

    def blocks(self, first: int = 0) -> Iterator[_Block]:
        sizes = self.sizes()
        padded = -(-sizes[0] // _GROUP) * _GROUP
        for number in range(first, len(sizes)):
            start = number * sizes[0]
            rows = np.asarray(self.features[start : start + sizes[number]])
            centred = rows - self.centre
            if np.abs(centred).max(initial=0.0) > _LARGEST:
                raise ValueError(
                    f"features spread over more than {_LARGEST:.0e}: distances would overflow"
                )
            x = np.zeros((padded, rows.shape[1]), np.float32)
            x[: len(rows)] = centred
            norms = np.square(x, dtype=np.float64).sum(axis=1).astype(np.float32)
            points = _Points(
                jnp.asarray(x), jnp.asarray(norms), np.int32(len(rows)), np.int32(start)
            )
            yield _Block(start, rows, points)


def _bounds(a: _Points, b: _Points, exclude_self: bool) -> tuple[jax.Array, jax.Array]:
    """Squared distances lie between these two (p, q); both are infinite for padding (and for a row
    with itself).
    """
    (p, d), q = a.x.shape, b.x.shape[0]
    sizes = a.norms[:, None] + b.norms[None, :]
    squared = sizes - 2 * jnp.matmul(a.x, b.x.T, precision=jax.lax.Precision.HIGHEST)
    # the last for what float32 flushes to zero
    noise = sizes * ((1.05 * d + 32) * 2.0**-24) + 2.0**-100
    i, j = jnp.arange(p)[:, None], jnp.arange(q)[None, :]
    excluded = (i >= a.rows) | (j >= b.rows)
    if exclude_self:
        excluded |= i + a.start == j + b.start
    return jnp.where(excluded, jnp.inf, squared - noise), jnp.where(
        excluded, jnp.inf, squared + noise
    )


def _exact(a: Features, b: Features) -> _Float:
    """Distances (pairs,) of rows a to rows b, both (pairs, d)."""
    return np.sqrt(np.square(np.subtract(a, b, dtype=np.float64)).sum(axis=1))


def _pair_blocks(i: _Int, j: _Int, dim: int) -> Iterator[tuple[_Int, _Int]]:
    step = max(1, _EXACT_VALUES // dim)
    for start in range(0, len(i), step):
        yield i[start : start + step], j[start : start + step]


# Neighbours


class _Screen(NamedTuple):
    """Bounds of squared distances of data (p,) and queries (q,).

    `lower` (p, q), and the least upper bound of each query in every group of data rows (p / 16, q).
    One made the other way round holds the same distances with data and queries exchanged.
    """

    lower: jax.Array
    upper: jax.Array


@jax.jit
def _screen(data: _Points, queries: _Points) -> _Screen:
    return _grouped(*_bounds(data, queries, exclude_self=False))


@jax.jit
def _screen_both(one: _Points, two: _Points) -> tuple[_Screen, _Screen]:
    """Within one set, where a row is not its own neighbour: for queries two, and for queries
    one.
    """
    lower, upper = _bounds(one, two, exclude_self=True)
    return _grouped(lower, upper), _grouped(lower.T, upper.T)


def _grouped(lower: jax.Array, upper: jax.Array) -> _Screen:
    return _Screen(lower, upper.reshape(-1, _GROUP, upper.shape[1]).min(axis=1))


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


def _search(queries: _Side, data: _Side, k: int) -> Iterator[_Best]:
    """The k nearest rows of data, block by block of queries."""
    for block in queries.blocks():
        best = _Best.none(len(block.rows), k)
        for other in data.blocks():
            _update(best, block, other, _screen(other.points, block.points))
        yield best


def _search_within(side: _Side, k: int) -> list[_Best]:
    """The k nearest of the other rows, for every block; each pair of blocks is screened once, for
    both.
    """
    bests = [_Best.none(size, k) for size in side.sizes()]
    for i, one in enumerate(side.blocks()):
        for j, two in enumerate(side.blocks(first=i), start=i):
            of_two, of_one = _screen_both(one.points, two.points)
            _update(bests[i], one, two, of_one)
            if i != j:
                _update(bests[j], two, one, of_two)
    return bests


def _update(best: _Best, queries: _Block, data: _Block, screen: _Screen) -> None:
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
    for index_part, query_part in _pair_blocks(index, query, data.rows.shape[1]):
        # Rows come in ascending order: with k equal ones found, no later one is better. Images that
        # are all the same would otherwise take a distance for every pair.
        still = best.distances[query_part, -1] > 0
        index_part, query_part = index_part[still], query_part[still]
        if len(index_part):
            distance = _exact(queries.rows[query_part], data.rows[index_part])
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

    def squared_radii(self, block: _Block) -> NDArray[np.float32]:
        """(p, 1) or (1, q), with zeros where the block is padded."""
        squared = np.zeros(len(block.points.x), np.float32)
        squared[: len(block.rows)] = np.square(
            self.radii[block.start : block.start + len(block.rows)]
        )
        return squared[:, None] if self.on_rows else squared[None, :]

    def add(self, rows: _Block, columns: _Block, verdict: "_Verdict") -> None:
        centres, others = (rows, columns) if self.on_rows else (columns, rows)
        n, m = len(centres.rows), len(others.rows)
        of_row, of_column = np.asarray(verdict.of_row), np.asarray(verdict.of_column)
        of_centre, of_other = (of_row, of_column) if self.on_rows else (of_column, of_row)
        self.hit[centres.start : centres.start + n] |= of_centre[:n] > 0
        self.count[others.start : others.start + m] += of_other[:m]
        i, j = np.nonzero(np.asarray(verdict.undecided))
        ball, point = (i, j) if self.on_rows else (j, i)
        for ball_part, point_part in _pair_blocks(ball, point, rows.rows.shape[1]):
            distance = _exact(centres.rows[ball_part], others.rows[point_part])
            radius = self.radii[ball_part + centres.start]
            inside = distance <= radius if self.closed else distance < radius
            self.hit[ball_part[inside] + centres.start] = True
            np.add.at(self.count, point_part[inside] + others.start, 1)


class _Verdict(NamedTuple):
    """Pairs surely inside, counted along each row (p,) and column (q,) of the block, and the
    undecided ones (p, q).
    """

    of_row: jax.Array
    of_column: jax.Array
    undecided: jax.Array


@jax.jit
def _judge(rows: _Points, columns: _Points, squared_radii: Sequence[jax.Array]) -> list[_Verdict]:
    lower, upper = _bounds(rows, columns, exclude_self=False)

    def verdict(squared: jax.Array) -> _Verdict:
        squared = jnp.broadcast_to(squared, lower.shape)
        inside = upper < squared * (1 - _SLACK)
        undecided = ~inside & (lower <= squared * (1 + _SLACK)) & (lower < jnp.inf)
        return _Verdict(inside.sum(axis=1), inside.sum(axis=0), undecided)

    return [verdict(squared) for squared in squared_radii]


def _tally(rows: Features, columns: Features, balls: Sequence[_Balls], block: int) -> None:
    mean = check_features(rows, 1, "a comparison of features")
    for one in _Side(rows, mean, block).blocks():
        for two in _Side(columns, mean, block).blocks():
            radii = [
                jnp.asarray(part.squared_radii(one if part.on_rows else two)) for part in balls
            ]
            for part, verdict in zip(balls, _judge(one.points, two.points, radii), strict=True):
                part.add(one, two, verdict)
