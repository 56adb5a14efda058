"""Worker processes end with the command that began them, also when that is killed and cannot tell them to.

Beam's worker processes notice that the channel to their parent is gone, but work on to the end of their bundle: here a
shard, which may take minutes. What they would still write does no harm (see `pipelines.lock.check_ours`); the cores
that they would take from the command that goes on do.
"""

import os
import select
import threading
from pathlib import Path


def end_with(command: int) -> None:
    """End this process when the process `command` ends, if that is its ancestor. On Linux; does nothing elsewhere.

    A worker on another machine, or one that serves several commands, is nobody's child and stays.
    """
    if command == os.getpid() or command not in _ancestors(os.getpid()) or not hasattr(os, "pidfd_open"):
        return
    handle = os.pidfd_open(command)
    threading.Thread(target=_wait, args=(handle,), daemon=True, name="end with the command").start()


def _wait(handle: int) -> None:
    select.select([handle], [], [])  # readable once the process has ended
    os._exit(1)


def _ancestors(process: int) -> list[int]:
    found: list[int] = []
    try:
        while process > 1:
            # "pid (name) state parent ...": the name may hold anything, so count from its end.
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(process)
    except (OSError, ValueError):  # no such file system, or an ancestor that has just ended
        pass
    return found
