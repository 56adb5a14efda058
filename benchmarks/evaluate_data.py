"""What all sides of `benchmarks/evaluate.py` compute from: sizes, images, statistics, features;
each from a seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.sides import Settings, Watch

NEIGHBOURS = 3
SAMPLING_SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much of each part is measured.

    `images` of `pixels` a side go through Inception in batches of `batch`; statistics and features
    have `dim` dimensions; precision and recall are of `rows` against `rows`, beside plain float64
    of `screened` against `screened`; `samples` are drawn in `steps` at guidance `cfg`; `decoded`
    latents of `latent` cells a side go through the VAE; memory is measured at two numbers of
    images. With `compiled` torch.compile's loop is timed too.
    """

    images: int
    pixels: int
    batch: int
    dim: int
    rows: int
    screened: int
    network: Settings
    samples: int
    steps: int
    cfg: float
    vae: str
    decoded: int
    latent: int
    memory: tuple[int, int]
    compiled: bool


def choose_sizes(quick: bool, gpu: bool) -> Sizes:
    """The sizes of a CPU or a GPU; the quick ones show that everything runs, and no rate."""

    def network(name: str, depth: int, batch: int, cells: int, dtype: str) -> Settings:
        return Settings(name, depth, 2, batch, (cells, cells, 4), dtype, False, False, 1)

    if quick:
        debug = network("debug", 2, 2, 4, "float32")
        return Sizes(
            2, 64, 2, 64, 300, 300, debug, 2, 20, 4.0, "embedded", 1, 4, (300, 1200), False
        )
    if gpu:
        small = network("S", 12, 64, 32, "bfloat16")
        return Sizes(
            1024,
            256,
            128,
            2048,
            10_000,
            2_000,
            small,
            64,
            20,
            4.0,
            "random",
            16,
            32,
            (5_000, 40_000),
            True,
        )
    small = network("S", 4, 8, 16, "float32")
    return Sizes(
        32, 256, 8, 2048, 10_000, 2_000, small, 8, 20, 4.0, "random", 2, 16, (5_000, 40_000), True
    )


class Begun(NamedTuple):
    """Outputs by the names of what can be timed, and why the rest cannot."""

    outputs: dict[str, NDArray[Any]]
    skipped: dict[str, str]


class Contenders:
    """A side that serves every part by a method of its name, which returns functions to be timed.

    `checked` are outputs that stand for those of the functions where a comparison wants more digits
    than a timing.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Callable[[], NDArray[Any]]] = {}
        self.checked: dict[str, NDArray[Any]] = {}
        self.skipped: dict[str, str] = {}

    def begin(self, part: str, sizes: Sizes, folder: str) -> Begun:
        """Everything up to the first outputs, which also compile what is compiled."""
        outputs: dict[str, NDArray[Any]] = {}
        for name, run in getattr(self, part)(sizes, folder).items():
            try:
                found: NDArray[Any] = run()
            except Exception as reason:
                line = (str(reason).strip().splitlines() or [""])[0]
                self.skipped[name] = f"{type(reason).__name__}: {line[:120]}"
            else:
                self.runs[name] = run
                outputs[name] = self.checked.get(name, found)
        return Begun(outputs, self.skipped)

    def time(self, name: str) -> tuple[float, float]:
        """Seconds, and processor seconds, of one run from numpy to numpy."""
        watch = Watch()
        self.runs[name]()
        return watch.seconds(1)


def draw_images(sizes: Sizes) -> NDArray[np.uint8]:
    """(images, pixels, pixels, 3): coarse blocks with noise on them."""
    rng = np.random.default_rng(0)
    side = sizes.pixels // 8
    blocks = rng.uniform(0, 255, (sizes.images, 8, 8, 3)).repeat(side, axis=1).repeat(side, axis=2)
    return (blocks + rng.normal(0, 20, blocks.shape)).clip(0, 255).astype(np.uint8)


class Case(NamedTuple):
    """Two Gaussians, and their Fréchet distance by another way than those that are timed."""

    mu1: NDArray[np.float64]
    sigma1: NDArray[np.float64]
    mu2: NDArray[np.float64]
    sigma2: NDArray[np.float64]
    exact: float


CASES = {"full rank": 2.0, "rank-deficient": 0.25}  # rows to a dimension


def draw_case(dim: int, name: str) -> Case:
    """Statistics whose distance is known.

    With S2 = M S1 M and a symmetric M >= 0, x -> M x is the optimal map between the two, whatever
    the rank of S1, and the distance is |mu1 - mu2|^2 + tr((M - 1) S1 (M - 1)), a sum of squares
    (Olkin & Pukelsheim 1982). The spectrum of S1 decays, as those of pooled features do.
    """
    rng = np.random.default_rng(1)
    n = round(CASES[name] * dim)
    rows = rng.standard_normal((n, dim)) / np.sqrt(1 + np.arange(dim))
    rows = rows @ (rng.standard_normal((dim, dim)) / np.sqrt(dim))
    rows = (rows - rows.mean(axis=0)) / np.sqrt(n - 1)
    factor = rng.standard_normal((dim, dim // 8)) / np.sqrt(dim)
    change = factor @ factor.T
    moved = rows + rows @ change
    mu1, mu2 = rng.uniform(0, 1, (2, dim))
    mu2 = mu1 + 0.02 * (mu2 - mu1)
    exact = np.square(mu1 - mu2).sum() + np.square(rows @ change).sum()
    return Case(mu1, rows.T @ rows, mu2, moved.T @ moved, float(exact))


def draw_features(sizes: Sizes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two overlapping sets (rows, dim) of positive features of few intrinsic dimensions, as pooled
    ones are.
    """
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((24, sizes.dim), np.float32) / np.float32(np.sqrt(24))
    sets = (
        spread * rng.standard_normal((sizes.rows, 24), np.float32) @ mixing for spread in (1.0, 0.9)
    )
    first, second = (np.maximum(rows + np.float32(0.3), 0) for rows in sets)
    return first.astype(np.float32), second.astype(np.float32)


def draw_labels(sizes: Sizes, classes: int) -> NDArray[np.int32]:
    """(samples,)."""
    return np.random.default_rng(3).integers(0, classes, sizes.samples).astype(np.int32)


def draw_latents(sizes: Sizes) -> NDArray[np.float32]:
    """(decoded, latent, latent, 4), raw."""
    return 4 * np.random.default_rng(4).standard_normal(
        (sizes.decoded, sizes.latent, sizes.latent, 4), np.float32
    )
