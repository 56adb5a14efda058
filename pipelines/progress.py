"""Progress of a run, whoever does the work: each shard leaves its count in a small file, the command looks at them."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipelines.storage import WORK, LocalDirectory

_FOLDER = f"{WORK}/progress"
_INTERVAL = 0.5  # seconds


class Ticker:
    """Counts the items of one shard and writes the count down now and then."""

    def __init__(self, directory: LocalDirectory, shard: int):
        self._directory = directory
        self._name = f"{_FOLDER}/{shard:05d}"
        self._count = 0
        self._written = 0.0

    def add(self, items: int) -> None:
        """Count `items` more."""
        self._count += items
        if time.monotonic() - self._written >= _INTERVAL:
            self._directory.write(self._name, str(self._count))
            self._written = time.monotonic()


class ProgressBar:
    """A bar on stderr with images/s and time left, while the context lasts. Says nothing when stderr is no terminal.

    Args:
        directory: the dataset being made.
        sizes: items of each shard.
        enabled: None to ask whether stderr is a terminal.
    """

    def __init__(self, directory: LocalDirectory, sizes: list[int], enabled: bool | None = None):
        self._directory = directory
        self._sizes = sizes
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._directory.remove(_FOLDER)
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._enabled:
            self._thread.join()

    def _watch(self) -> None:
        begin = self._count()
        with tqdm(total=sum(self._sizes), initial=begin, unit="img", desc="compile", file=sys.stderr) as bar:
            last = False
            while not last:
                last = self._stop.wait(_INTERVAL)
                count = self._count()
                if count > begin:
                    bar.set_description("encode", refresh=False)
                bar.update(count - bar.n)

    def _count(self) -> int:
        """Items of the shards that are done, and what the tickers of the others say."""
        done = {int(name.split(".")[0]) for name in self._directory.names(f"{WORK}/done") if name[0] != "."}
        count = sum(self._sizes[shard] for shard in done)
        for name in self._directory.names(_FOLDER):
            if name[0] != "." and int(name) not in done:
                count += int(self._directory.read(f"{_FOLDER}/{name}") or 0)
        return count
