"""Progress bars of commands, on stderr."""

import sys
from typing import Any


def bar(**arguments: Any) -> Any:
    """A tqdm bar with these arguments; in a log file, which needs none that moves, it is drawn
    every 20 seconds.
    """
    from tqdm import tqdm

    pause = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(**arguments, dynamic_ncols=True, mininterval=pause, maxinterval=max(pause, 10.0))


def bytes_bar(total: int, doing: str, disable: bool | None = False) -> Any:
    """The bar of whatever moves or reads files: `total` bytes.

    Args:
        total: in all.
        doing: one word in front of it.
        disable: show none; None shows one on a terminal only.
    """
    return bar(total=total, desc=doing, unit="B", unit_scale=True, disable=disable)
