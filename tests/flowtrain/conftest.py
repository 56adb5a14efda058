"""Disks that are full: small ones, and ones on which no file may grow."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk with mount options (`size=300k`, `nr_inodes=20`), and with other ones when asked again."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        options = f"remount,{options}" if mounted else options
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"no right to mount a small disk: {result.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", path], check=True)  # a thread of a failed save may still hold a file open


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """While in the context, no file of this process may grow beyond so many bytes (EFBIG)."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
