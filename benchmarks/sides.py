"""What both sides of `benchmarks/train.py` need: settings, a batch, a stopwatch, and a process for
each.
"""

import multiprocessing
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

SIZES = {
    "debug": (2, 32, 2),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
GPU_BATCH = {"debug": 256, "S": 256, "B": 256, "L": 128, "XL": 128}
SCAN_FROM_DEPTH = 24
CLASSES, LABEL_DROP, EMA_DECAY = 1000, 0.1, 0.9999
RATE, BETA1, BETA2, EPSILON = 1e-4, 0.9, 0.99, 1e-8
VAE_SCALE = 0.18215
CHECK_BATCH, CHECK_DEPTH = 2, 4  # images and blocks; all blocks are alike


@dataclass(frozen=True)
class Settings:
    """What is timed. `latent` is (h, w, c)."""

    size: str
    depth: int
    patch: int
    batch_size: int
    latent: tuple[int, int, int]
    dtype: str
    scan: bool
    remat: bool
    accumulate: int


def make_batch(settings: Settings) -> dict[str, np.ndarray]:
    """As `flowtrain.records.data` hands it over: raw float16 moments."""
    rng, n = np.random.default_rng(0), settings.batch_size
    mean = 5 * rng.standard_normal((n, *settings.latent), np.float32)
    logvar = rng.uniform(-15, -5, (n, *settings.latent))
    label, index = rng.integers(0, CLASSES, n), np.arange(n)
    numbers = {"index": index, "epoch": np.zeros(n), "label": label}
    moments = {"mean": mean.astype(np.float16), "logvar": logvar.astype(np.float16)}
    return moments | {name: value.astype(np.int32) for name, value in numbers.items()}


def check_inputs(settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, t, label) of the comparison; the last label is the null class."""
    x = np.random.default_rng(1).standard_normal((CHECK_BATCH, *settings.latent), np.float32)
    return x, np.linspace(0.1, 0.9, CHECK_BATCH, dtype=np.float32), np.array([3, CLASSES], np.int32)


def square(platform: str) -> tuple[int, int]:
    """Side and number of the products in one measurement of a ceiling, those of
    `flowtrain.devices.ceiling`.
    """
    from flowtrain.devices import ceiling

    return ceiling._SIZES.get(platform, ceiling._SIZE)


class Watch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self.begin, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of one of so many steps. On a CPU that others use too, processor time repeats better than
        the wall's.
        """
        return (time.perf_counter() - self.begin) / steps, (time.process_time() - self.cpu) / steps


class SideError(Exception):
    """What a side could not do, in one line."""


class Side:
    """A process with one framework in it; it ends with the `with` block, and its device memory with
    it.
    """

    def __init__(self, kind: type[Any]):
        self.kind, self.ready, self.steps = kind, False, list[str]()

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self.kind), daemon=True)
        self._process.start()
        far.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call a method over there. Raises `SideError`."""
        try:
            self._pipe.send((what, arguments))
            done, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise SideError(f"its process ended in {what!r}") from None
        if not done:
            raise SideError(answer)
        return answer


def _serve(pipe: Any, kind: type[Any]) -> None:
    side = kind()
    with suppress(EOFError):
        while True:
            what, arguments = pipe.recv()
            try:
                pipe.send((True, getattr(side, what)(*arguments)))
            except Exception as reason:
                line = (str(reason).strip().splitlines() or [""])[0]
                pipe.send((False, f"{type(reason).__name__}: {line[:120]}"))
