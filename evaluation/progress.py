"""What a command shows while it works: warnings, and bars that workers move by small files."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

Notify = Callable[[str], object]  # takes a warning, one line

_INTERVAL = 0.3  # seconds


class Bar(Protocol):
    """The part of a progress bar that is used; `tqdm.tqdm` fits."""

    def update(self, n: int, /) -> object: ...
    def set_description(self, desc: str, /, refresh: bool = True) -> object: ...
    def close(self) -> object: ...


class MakeBar(Protocol):
    """Makes a bar of `total` units."""

    def __call__(self, *, total: int, desc: str, unit: str) -> Bar: ...


def tick(folder: str, worker: int, done: int) -> None:
    """From a worker: `done` units by now. Without effect where nobody watches `folder`."""
    with contextlib.suppress(OSError):
        Path(folder, str(worker)).write_text(str(done))


@contextlib.contextmanager
def watched(folder: str, bar: Bar | None) -> Iterator[None]:
    """Move `bar` by what workers `tick` into `folder` while the context lasts."""
    if bar is None:
        yield
        return
    with contextlib.suppress(OSError):  # a bar that stands still is no reason to stop
        Path(folder).mkdir(parents=True, exist_ok=True)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(Path(folder), bar, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)


def _watch(folder: Path, bar: Bar, over: threading.Event) -> None:
    shown = 0
    texts: list[str] = []
    last = False
    while not last:
        last = over.wait(_INTERVAL)
        with contextlib.suppress(OSError):
            texts = [path.read_text() for path in folder.iterdir()]
        done = sum(int(text) for text in texts if text)  # empty: being written at this moment
        bar.update(max(done - shown, 0))
        shown = max(done, shown)
