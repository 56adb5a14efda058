"""`flowtrain preprocess` in this process, or as a command of its own, and its datasets."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from flowtrain.cli import main
from pipelines.preprocess.plan import Plan, Request, make_plan
from schemas.storage import paths


def run(*arguments: object) -> Result:
    """`flowtrain preprocess ARGUMENTS` in this process, through the click layer."""
    return CliRunner().invoke(main, ["preprocess", *map(str, arguments)], catch_exceptions=False)


def start(*arguments: object) -> subprocess.Popen[str]:
    """The same command as a process that imports what it needs, and when it does: Beam's noise is
    kept off from its first import on.
    """
    command = [sys.executable, "-m", "flowtrain.cli", "preprocess", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan(source: Path | str, out: Path | str, **changes: Any) -> Plan:
    """A plan with small defaults."""
    request = {
        "source": str(source),
        "out": str(out),
        "split": "train",
        "resolution": 16,
        "crop": "adm",
        "vae": "none",
        "vae_revision": None,
        "vae_dtype": "float32",
        "flips": False,
        "shards": 4,
        "batch_size": 8,
        "seed": 0,
        "max_bad_fraction": 0.01,
        "min_psnr": 0.0,
    }
    return make_plan(Request(**{**request, **changes}))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and its bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL and its bytes."""
    return {entry.name: paths.read(paths.join(url, entry.name)) for entry in paths.entries(url)}
