"""`benchmarks/gpu.py` as a command, on a machine that has not everything."""

import os
import subprocess
import sys
from pathlib import Path

from tests.bare import ABSENT

SCRIPT = str(Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py")


def call(
    *arguments: object, site: str = "", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The script, with `site` run at the start of each of its processes."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    if folder is not None:
        (folder / "sitecustomize.py").write_text(site)
        environment["PYTHONPATH"] = str(folder)
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def blocker(packages: tuple[str, ...], *more: str) -> str:
    """No module of this project's other dependencies can be imported, but for `packages`."""
    absent = [
        name
        for name in (*ABSENT, "jaxtyping", "wadler_lindig", "pytest", *more)
        if name not in ("orbax", *packages)
    ]
    return f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {absent!r} else found(name, path, target)
PathFinder.find_spec = find_spec
"""
