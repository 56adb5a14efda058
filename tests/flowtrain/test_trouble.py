"""What a machine refuses while a command trains: one line and status 2, and the same command goes
on with room.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import command, debug_plan, finish, lines, saved, start
from tests.flowtrain.state.test_checksums import flip

RUN = ["train.steps=10", "train.keep=9"]
FULL = "No space left on device"


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=3)
    return path


@pytest.fixture(scope="module")
def calm(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with room for everything."""
    workdir = tmp_path_factory.mktemp("calm") / "run"
    finish(start(command(latents, workdir, overrides=RUN)))
    return workdir


def _run(words: Sequence[str], memory: int | None = None) -> tuple[int, str]:
    """Status and stderr of a command, which may have so many KiB of address space."""
    limited = ["sh", "-c", f'ulimit -v {memory or "unlimited"} && exec "$@"', "sh"]
    limited += [sys.executable, "-m", "flowtrain.cli", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, done.stderr


def _refused(words: Sequence[str], memory: int | None = None) -> str:
    """The one line of a command that must fail; before it there are the recipe and lines of
    progress, and no others.
    """
    status, errors = _run(words, memory)
    assert status == 2, errors
    *before, last = errors.splitlines()
    assert [
        line
        for line in before
        if line and not line.startswith(("[", "step ")) and " = " not in line
    ] == []
    assert last.startswith("Error: ")
    return last.removeprefix("Error: ")


def _assert_equal(latents: Path, one: Path, other: Path, step: int) -> None:
    plan = debug_plan(latents, *RUN)
    jax.tree.map(np.testing.assert_array_equal, saved(plan, one, step), saved(plan, other, step))


# A checkpoint takes 1 MB in 63 files and folders. Too little room is told before a byte is written;
# too few files by TensorStore, in the midst of it.
@pytest.mark.parametrize(
    ("few", "many", "told"),
    [
        ("size=1500k", "size=9m", r"MB needed, 0\.\d MB free"),
        ("nr_inodes=100", "nr_inodes=900", FULL),
    ],
    ids=["bytes", "files"],
)
def test_a_disk_that_fills_up_while_saving(
    latents: Path, calm: Path, small_disk: Callable[[str], Path], few: str, many: str, told: str
):
    workdir = small_disk(few) / "run"
    words = command(latents, workdir, overrides=RUN)
    line = _refused(words)
    assert line.startswith(f"{workdir}: the checkpoint could not be saved (")
    assert line.endswith("); those before it are whole; make room and repeat the command")
    assert re.search(told, line)
    _assert_equal(latents, workdir, calm, 5)
    small_disk(many)
    finish(start(words))
    _assert_equal(latents, workdir, calm, 10)
    assert [line["step"] for line in lines(workdir)] == [5, 10]


def test_a_disk_that_fills_up_with_metrics(latents: Path, small_disk: Callable[[str], Path]):
    workdir = small_disk("size=64k") / "run"
    more = ["train.steps=2000", "train.checkpoint_every=2000", "train.log_every=1"]
    line = _refused(command(latents, workdir, overrides=more))
    assert line == (
        f"{workdir}: the metrics could not be written ({FULL}); the checkpoints are whole; "
        "make room and repeat the command"
    )


def test_a_flipped_bit_in_a_checkpoint_is_one_line_and_the_one_before_is_gone_on_from(
    latents: Path, calm: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    shutil.copytree(calm, workdir)
    folder = workdir / "checkpoints" / "10"
    largest = max((folder / "opt").rglob("*"), key=lambda path: path.stat().st_size)
    flip(largest, 4 * largest.stat().st_size)
    words = command(latents, workdir, overrides=RUN)
    told = (
        f"{folder}: cannot read the checkpoint ({largest.relative_to(folder)}: its bytes are not "
        f"those that were saved); if its files are damaged, delete {folder} and repeat the command"
    )
    assert _refused(words) == told
    shutil.rmtree(folder)
    finish(start(words))
    _assert_equal(latents, workdir, calm, 10)


def test_a_step_that_does_not_fit_in_memory_names_the_knobs(latents: Path, tmp_path: Path):
    """With one activation of 17 GB for a process that may have 16 GiB; with a smaller batch the
    same network fits.
    """
    wide = ["model.depth=1", "model.width=256", "model.mlp_ratio=64", "model.patch=1"]
    wide += ["train.steps=2", "train.checkpoint_every=2"]
    memory = 16 << 20
    line = _refused(
        command(latents, tmp_path, "--overfit", "20", overrides=[*wide, "train.batch_size=16384"]),
        memory,
    )
    assert line.startswith("out of memory: a step does not fit; ")
    for knob in (
        "train.accumulate=2",
        "model.remat=true",
        "--fsdp N",
        "model.dtype=bfloat16",
        "train.batch_size",
    ):
        assert knob in line
    status, errors = _run(
        command(latents, tmp_path, "--overfit", "20", overrides=[*wide, "train.batch_size=8"]),
        memory,
    )
    assert status == 0, errors
