"""Progress of a run: the records of finished shards, and of shards that this machine works on.

Finished shards have markers in the dataset; workers on this machine count the rest in files.
"""

import os
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipelines.dataset.shard_results import DONE
from schemas.storage.directory import Directory
from schemas.storage.temporary import temporary_folder

_INTERVAL = 0.5  # seconds


class Ticker:
    """Counts the items of one shard, and writes the count to a small file now and then.

    Args:
        folder: where `ProgressBar` looks; None, or a folder that is not there (on another machine),
            for nowhere.
        shard: which one.
    """

    def __init__(self, folder: str | None, shard: int):
        self._path = (
            Path(folder, f"{shard:05d}") if folder is not None and Path(folder).is_dir() else None
        )
        self._count = 0
        self._written = 0.0

    def add(self, items: int) -> None:
        """Count `items` more."""
        self._count += items
        if self._path is not None and time.monotonic() - self._written >= _INTERVAL:
            with suppress(OSError):  # a full disk, or a bar that is gone: no reason to fail
                temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
                temporary.write_text(str(self._count))
                temporary.replace(self._path)
            self._written = time.monotonic()


class ProgressBar:
    """A bar on stderr with images/s and time left, while the context lasts. Says nothing when
    stderr is no terminal.

    Args:
        directory: the dataset being made.
        work: its `Settings.work`.
        sizes: items of each shard.
        enabled: None to ask whether stderr is a terminal.

    Attributes:
        ticks: folder for the `Ticker`s, None when there is no bar. Known once the context is
            entered.
    """

    ticks: str | None = None

    def __init__(
        self, directory: Directory, work: str, sizes: list[int], enabled: bool | None = None
    ):
        self._directory = directory
        self._done = f"{work}/{DONE}"
        self._sizes = sizes
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._stack = ExitStack()
        self._finished: set[int] = set()
        self._looked = -self._directory.patience

    def __enter__(self) -> Self:
        if self._enabled:
            self.ticks = str(self._stack.enter_context(temporary_folder()))
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._enabled:
            self._thread.join()
        self._stack.close()

    def _watch(self) -> None:
        begin = self._count()
        with tqdm(
            total=sum(self._sizes), initial=begin, unit="img", desc="compile", file=sys.stderr
        ) as bar:
            last = False
            while not last:
                last = self._stop.wait(_INTERVAL)
                # a tick is later than the look at the finished shards
                count = max(self._count(at_once=last), bar.n)
                if count > begin:
                    bar.set_description("encode", refresh=False)
                bar.update(count - bar.n)

    def _count(self, at_once: bool = False) -> int:
        """Items of the shards that are done, and what the tickers of the others say."""
        if at_once or time.monotonic() - self._looked >= self._directory.patience:
            # the next look may succeed; a run that cannot go on says so itself
            with suppress(OSError):
                names = self._directory.names(self._done)
                self._finished = {int(name.split(".")[0]) for name in names if name[0] != "."}
            self._looked = time.monotonic()
        count = sum(self._sizes[shard] for shard in self._finished)
        for path in Path(self.ticks or "").glob("[0-9]*"):
            if int(path.name) not in self._finished:
                count += int(path.read_text())
        return count
