"""Memory a process may still take: the machine's, or less in a limited container."""

import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes to be had without swapping or being killed; file cache counts as free.

    Where there is no /proc, as on macOS, the size of the whole memory.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return max(0, min([machine, *_left_in_groups(root)]))


# By version of control groups: limit, use, and the field of memory.stat that tells the pages of
# files not used lately.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the limits of this process's control group, and of those above it, leave."""
    for version, folder in _groups(root):
        limit_name, used_name, inactive_name = _FILES[version]
        limit = folder / limit_name
        if limit.is_file() and (told := limit.read_text().strip()) != "max":
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text().splitlines()
            )
            used = int((folder / used_name).read_text()) - int(statistics.get(inactive_name, 0))
            yield int(told) - used


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group; in a container the outer ones may be out of sight."""
    own = root / "proc/self/cgroup"
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = Path(path)
        for name in (group, *group.parents):
            yield (1 if controllers else 2), mount / str(name).lstrip("/")
