"""The trainer: exact resume of killed processes, any number of devices, and that it learns."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flowtrain.checkpoint import Checkpoints, with_sharding
from flowtrain.data import BatchReader, make_loader
from flowtrain.recipes import find_recipe
from flowtrain.sharding import batch_sharding, data_mesh, replicated
from flowtrain.state import TrainState
from flowtrain.train import Plan, init_state, make_plan, make_train_step, train
from schemas.config import load_recipe
from schemas.errors import UserError
from schemas.manifest import Normalization, write_manifest
from schemas.run import METRICS_NAME
from tests.flowtrain.datasets import write_dataset

RUN = ["train.steps=120", "train.checkpoint_every=8", "train.log_every=4", "optimizer.warmup_steps=9"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=3, flips=True)
    return path


def _plan(latents: Path, *overrides: str) -> Plan:
    return make_plan(latents, load_recipe(find_recipe("debug"), overrides))


def _start(latents: Path, workdir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowtrain.cli", "train", str(latents), "--workdir", str(workdir)]
    command += ["--recipe", "debug", *(part for value in RUN for part in ("--set", value))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _send_when(process: subprocess.Popen[str], ready: Callable[[], bool], number: signal.Signals) -> int:
    """Signal the process as soon as `ready()`; the exit status, negative for a signal."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(number)
    process.communicate()
    return process.returncode


def _last_line(workdir: Path) -> int:
    path = workdir / METRICS_NAME
    return len(path.read_text().splitlines()) * 4 if path.exists() else 0


def _saving(workdir: Path, after: int) -> bool:
    """Whether a save of a step beyond `after` is half done at this moment."""
    unfinished = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    return any(int(path.name.split(".")[0]) > after for path in unfinished)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def _final_state(plan: Plan, workdir: Path, step: int) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
    mesh = data_mesh(1, jax.local_devices()[:1])
    like = with_sharding(jax.eval_shape(lambda: init_state(plan, jax.random.key(0))), replicated(mesh))
    with Checkpoints(workdir, keep=2) as checkpoints:
        return checkpoints.restore(step, like)


def _curve(workdir: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (workdir / METRICS_NAME).read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(latents: Path, tmp_path: Path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    _finish(_start(latents, calm))

    assert _send_when(_start(latents, rough), (rough / "run.json").exists, signal.SIGKILL) == -signal.SIGKILL
    assert _send_when(_start(latents, rough), lambda: _saving(rough, 8), signal.SIGKILL) == -signal.SIGKILL
    killed_at = _last_line(rough)
    assert killed_at >= 16
    assert _send_when(_start(latents, rough), lambda: _last_line(rough) > killed_at + 12, signal.SIGTERM) == 75
    stopped_at = _last_line(rough)
    assert _send_when(_start(latents, rough), lambda: _saving(rough, stopped_at + 8), signal.SIGKILL) < 0
    _finish(_start(latents, rough))

    plan = _plan(latents, *RUN)
    expected, actual = _final_state(plan, calm, 120), _final_state(plan, rough, 120)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert actual[1] == {"next_index": 120}
    steps = [step for step, _, _ in _curve(rough)]
    assert steps == list(range(4, 121, 4))
    _assert_same_curve(calm, rough)


def _assert_same_curve(calm: Path, rough: Path) -> None:
    """Equal lines, but where a stop in mid-interval made a line's mean begin later."""
    same = [one == other for one, other in zip(_curve(calm), _curve(rough), strict=True)]
    assert same.count(False) <= 1


def test_a_finished_run_is_left_alone_and_can_be_made_longer(latents: Path, tmp_path: Path):
    device = jax.local_devices()[:1]
    assert train(_plan(latents), tmp_path / "a", devices=device).step == 20
    assert train(_plan(latents), tmp_path / "a", devices=device).step == 20
    longer = _plan(latents, "train.steps=30")
    assert train(longer, tmp_path / "a", devices=device).step == 30
    train(longer, tmp_path / "b", devices=device)
    jax.tree.map(
        np.testing.assert_array_equal,
        _final_state(longer, tmp_path / "a", 30),
        _final_state(longer, tmp_path / "b", 30),
    )


def test_eight_devices_compute_what_one_does(latents: Path):
    plan = _plan(latents)
    key, losses = jax.random.key(0), {}
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        mesh = data_mesh(8, devices)
        state = jax.jit(lambda k: init_state(plan, k), out_shardings=replicated(mesh))(key)
        step, loader = make_train_step(plan), make_loader(BatchReader(plan.reader, batch_size=8, seed=0, flip=True), 8)
        curve = []
        for _ in range(8):
            state, metrics = step(state, jax.device_put(next(loader), batch_sharding(mesh)), key)
            curve.append(float(metrics["loss"]))
        losses[len(devices)] = curve
        assert int(state.step) == 8
    np.testing.assert_allclose(losses[8], losses[1], rtol=2e-6)


def test_it_learns_and_the_average_follows(latents: Path, tmp_path: Path):
    plan = _plan(latents, "train.steps=150", "optimizer.learning_rate=3e-3", "train.checkpoint_every=150")
    train(plan, tmp_path, devices=jax.local_devices()[:1])
    losses = [loss for _, loss, _ in _curve(tmp_path)]
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    state, _, meta = _final_state(plan, tmp_path, 150)
    assert meta["recipe"]["train"]["steps"] == 150
    distance = [
        float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (state.params, state.ema)), strict=True)
    ]
    assert 0 < max(distance) < 0.1


def test_a_diverging_run_stops_and_saves_nothing_bad(latents: Path, tmp_path: Path):
    plan = _plan(latents, "optimizer.learning_rate=1e30")
    with pytest.raises(UserError, match="the loss is no longer finite"):
        train(plan, tmp_path, devices=jax.local_devices()[:1])
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_does_not_fit_is_refused_before_anything_is_written(latents: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"batch_size 21 is larger than the dataset \(20 records\)"):
        _plan(latents, "train.batch_size=21")
    odd = tmp_path / "odd"
    write_dataset(odd, shape=(5, 5, 4), factor=8)
    with pytest.raises(
        UserError, match="resolution 40 is not divisible by VAE factor 8 x patch 2: the latents are 5x5"
    ):
        _plan(odd)
    other = tmp_path / "other"
    write_dataset(other, records=21)
    workdir = tmp_path / "run"
    train(_plan(latents, "train.steps=1"), workdir, devices=jax.local_devices()[:1])
    before = sorted(path.relative_to(workdir) for path in workdir.rglob("*"))
    for plan, message in ((_plan(other), "another dataset"), (_plan(latents, "model.depth=1"), "model.depth was 2")):
        with pytest.raises(UserError, match=message):
            train(plan, workdir, devices=jax.local_devices()[:1])
    assert sorted(path.relative_to(workdir) for path in workdir.rglob("*")) == before


def test_the_dataset_may_move(latents: Path, tmp_path: Path):
    device = jax.local_devices()[:1]
    train(_plan(latents), tmp_path / "run", devices=device)
    moved = tmp_path / "moved"
    shutil.copytree(latents, moved)
    assert train(_plan(moved, "train.steps=22"), tmp_path / "run", devices=device).step == 22


def test_samples_that_are_in_model_scale_are_not_scaled_again(tmp_path: Path):
    manifest = write_dataset(tmp_path)
    applied = Normalization(offset=(1.0,) * 4, scale=(2.0,) * 4)
    write_manifest(tmp_path, manifest.model_copy(update={"normalization": applied}))
    plan = _plan(tmp_path)
    assert plan.from_stored == Normalization.identity(4)
    assert plan.run.normalization == applied, "decoding must undo what was applied"
    plan = _plan(tmp_path, "train.normalization=channel")
    assert plan.from_stored == manifest.channel_normalization()
    assert plan.run.normalization == applied.then(manifest.channel_normalization())
