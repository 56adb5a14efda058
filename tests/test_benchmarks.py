"""Benchmarks run, time what they say, and end where outputs differ.

That of training needs jax, flax, optax, numpy and jaxtyping alone.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.evaluate import (
    DisagreementError,
    agree,
    agree_on_distance,
    agree_on_shares,
    check_growth,
)
from benchmarks.evaluate_ours import _Watched
from benchmarks.jax_dit import plain_recipe
from benchmarks.sides import SCAN_FROM_DEPTH, SIZES, Settings
from flowtrain.model import forward_macs
from schemas import config
from tests.bare import ABSENT

ROOT = Path(__file__).resolve().parent.parent
BLOCKER = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"{{name}} is not on a bare machine")
sys.meta_path.insert(0, Absent())
"""


DEBUG = config.ModelConfig.model_validate({"size": "debug"})


def test_runs_on_a_bare_machine(tmp_path: Path):
    # also in the processes that the benchmark starts
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "train.py"),
        *"--size debug --latent 4x4x4".split(),
    ]
    command += "--no-torch --batch-size 2 --rounds 1 --steps 1 --json".split()
    unoptimised = "--xla_backend_optimization_level=0"  # compiles in half the time
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XLA_FLAGS": unoptimised}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    result = json.loads(done.stdout)
    assert result["platform"] == "cpu"
    assert result["versions"]["jax"] == jax.__version__
    (run,) = result["runs"]
    macs = 2 * (12 * 4 * 32**2 + 2 * 4**2 * 32 + 6 * 32**2) + 2 * 4 * 16 * 32 + 256 * 32 + 3 * 32**2
    assert run["forward_macs"] == macs == forward_macs(DEBUG, (4, 4, 4))
    (row,) = run["rows"]
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert row["flops"] == pytest.approx(6 * macs * row["images_per_second"])
    assert 0 < row["share"] < 1.2
    assert row["ours_over_this"] == 1
    assert 0 < row["compile_seconds"] < 600
    assert row["memory"] > 0


@pytest.mark.parametrize("size", SIZES)
def test_what_is_timed_is_a_recipe_at_its_defaults(size: str):
    model = config.ModelConfig.model_validate({"size": size})
    settings = Settings(
        size,
        SIZES[size][0],
        2,
        8,
        (32, 32, 4),
        "float32",
        SIZES[size][0] >= SCAN_FROM_DEPTH,
        False,
        1,
    )
    train = config.TrainConfig(steps=1_000_000, batch_size=8)
    recipe = config.Recipe(model=model, train=train)
    for name, table in vars(plain_recipe(settings)).items():
        theirs = getattr(recipe, name)
        assert vars(table) == {key: getattr(theirs, key) for key in vars(table)}


def evaluate(tmp_path: Path, arguments: str, site: str = "") -> subprocess.CompletedProcess[str]:
    """`benchmarks/evaluate.py --quick`, with `site` run at the start of each of its processes."""
    (tmp_path / "sitecustomize.py").write_text(site)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "evaluate.py"),
        "--quick",
        "--json",
        *arguments.split(),
    ]
    # One thread: those of PyTorch wait for one another where other tests have the cores.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_evaluation_without_torch(tmp_path: Path):
    done = evaluate(
        tmp_path,
        "--only frechet,neighbours,screen,memory",
        BLOCKER.replace(repr(ABSENT), "('torch',)"),
    )
    assert done.returncode == 0, done.stderr[-1500:]
    result = json.loads(done.stdout)
    assert result["platform"] == "cpu"
    assert result["versions"]["jax"] == jax.__version__
    assert [row["against"] for row in result["rows"]] == [
        "sqrtm, full rank",
        "sqrtm, rank-deficient",
        "differences, float64",
        "products, float64",
    ]
    for row in result["rows"]:
        low, high = row["spread"]
        assert 0 < low == row["ratio"] == high
        assert row["ratio"] == pytest.approx(row["rate"] / row["their_rate"])
    assert "is not on a bare machine" in result["skipped"]["neighbours"]
    assert result["memory"]["images"] == [300, 1200]
    assert min(result["memory"]["peaks"]) > 50 << 20  # an interpreter with Beam in it


def test_evaluation_beside_torch(tmp_path: Path):
    pytest.importorskip("torch")
    done = evaluate(tmp_path, "--only neighbours,sampling")
    assert done.returncode == 0, done.stderr[-1500:]
    result = json.loads(done.stdout)
    assert not result["skipped"]
    assert [row["against"] for row in result["rows"]] == ["ADM's, float32", "PyTorch loop"]


BROKEN = {
    "ours": ("import numpy.linalg as m", "svd", "ours is [0-9.e-]+ off a known distance"),
    "theirs": ("import scipy.linalg as m", "sqrtm", "distances differ by"),
}


@pytest.mark.parametrize("side", BROKEN)
def test_another_computation_is_not_timed(tmp_path: Path, side: str):
    module, name, message = BROKEN[side]
    site = f"{module}\noriginal = m.{name}\nm.{name} = lambda *a, **k: 1.001 * original(*a, **k)\n"
    done = evaluate(tmp_path, "--only frechet", site)
    assert done.returncode == 1
    assert not done.stdout
    assert re.search(f"^frechet: {message}", done.stderr, re.MULTILINE)


def test_evaluation_of_an_unknown_part(tmp_path: Path):
    done = evaluate(tmp_path, "--only frechet,fid")
    assert done.returncode == 2
    assert "--only fid: parts are inception, frechet" in done.stderr


ONES, WRONG = np.ones((2, 3)), np.array([[1, 1, 1], [1, 1, 1.01]])


@pytest.mark.parametrize(
    ("check", "ours", "theirs"),
    [
        (agree, ONES, WRONG),
        (agree, ONES, ONES[:1]),
        (agree, ONES * np.nan, ONES),
        (agree_on_distance, np.array([1.0, 1.0 + 1e-8]), np.array([1.0])),
        (agree_on_distance, np.array([1.0, 1.0]), np.array([1.1])),
        (agree_on_distance, np.array([1.0, 1.0]), np.array([np.nan])),
        (agree_on_shares, np.array([0.5, 0.5]), np.array([0.5, 0.52])),
        (agree_on_shares, np.array([0.5, 0.5]), np.array([np.nan, 0.5])),
    ],
)
def test_outputs_that_differ(check: Any, ours: np.ndarray, theirs: np.ndarray):
    with pytest.raises(DisagreementError):
        check(ours, theirs, 1e-3)


def test_outputs_that_agree():
    assert agree(ONES, ONES + 1e-6, 1e-3) == "outputs differ by 1.0e-06"
    assert "ours 0e+00, this 1e-04" in agree_on_distance(
        np.array([2.0, 2.0]), np.array([2.0002]), 1e-3
    )
    assert agree_on_shares(np.array([0.5, 0.25]), np.array([0.5001, 0.25]), 1e-3).startswith(
        "precision, recall: 0.5000"
    )


def test_memory_that_grows():
    check_growth(600 << 20, 640 << 20)
    check_growth(100 << 20, 130 << 20)  # an allocator's mood
    with pytest.raises(DisagreementError, match="600 and 700 MiB"):
        check_growth(600 << 20, 700 << 20)


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc"
)
def test_a_peak_of_memory_is_seen():
    with _Watched() as before:
        time.sleep(0.05)
    with _Watched() as during:
        block = np.ones(64 << 17)
        time.sleep(0.05)
        del block
        time.sleep(0.05)
    assert during.peak - before.peak > 60 << 20
