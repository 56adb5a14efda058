"""The benchmark of training runs on a machine with jax, flax, optax and numpy alone, and times what recipes train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.jax_dit import plain_recipe
from benchmarks.sides import SCAN_FROM_DEPTH, SIZES, Settings
from flowtrain.model import forward_macs
from schemas import config
from tests.test_imports import ABSENT

ROOT = Path(__file__).resolve().parent.parent
BLOCKER = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"{{name}} is not on a bare machine")
sys.meta_path.insert(0, Absent())
"""


def test_runs_on_a_bare_machine(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)  # also in the processes that the benchmark starts
    command = [sys.executable, str(ROOT / "benchmarks" / "train.py"), *"--size debug --latent 4x4x4".split()]
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
    assert run["forward_macs"] == macs == forward_macs(config.ModelConfig(size="debug"), (4, 4, 4))
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
    settings = Settings(size, SIZES[size][0], 2, 8, (32, 32, 4), "float32", SIZES[size][0] >= SCAN_FROM_DEPTH, False, 1)
    train = config.TrainConfig(steps=1_000_000, batch_size=8)
    recipe = config.Recipe(model=model, train=train)
    for name, table in vars(plain_recipe(settings)).items():
        theirs = getattr(recipe, name)
        assert vars(table) == {key: getattr(theirs, key) for key in vars(table)}
