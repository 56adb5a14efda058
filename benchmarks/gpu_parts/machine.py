"""Device, versions and commit, without importing a framework: a part that hangs in one is still
described.
"""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "numpy"),
    *("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
)
_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def facts() -> dict[str, Any]:
    """`device`, `driver` (None without a GPU), `versions`, `commit`; the CUDA plugin's name tells
    CUDA's version.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    gpu = _output(_QUERY)
    if gpu:
        name, driver, memory = (field.strip() for field in gpu.splitlines()[0].split(","))
        return {
            "device": f"{name}, {memory}",
            "driver": driver,
            "versions": versions,
            "commit": commit(),
        }
    cpu = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return {"device": cpu, "driver": None, "versions": versions, "commit": commit()}


def commit() -> str:
    """Of the working tree, with a plus where it has changes; `$COMMIT` where a copy without git was
    told of it.
    """
    told = os.environ.get("COMMIT")
    return (
        told
        or _output(("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"))
        or "unknown"
    )


def _output(command: tuple[str, ...]) -> str:
    """Of a command; empty where there is no such command or it fails."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return ""
