"""The trainer: any number of devices, longer runs, what it refuses, and that it learns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flowtrain.records.reader import LatentReader
from flowtrain.state.checkpoint import TrainedModel
from flowtrain.state.checksums import CHECKSUMS
from flowtrain.train import Options
from schemas.errors import UserError
from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import ONE, curve, debug_plan, lines, run_debug, saved


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=3, flips=True)
    return path


EVERY_STEP = "train.log_every=1"
MESHES = {
    "one": (1, 1),
    "two": (2, 1),
    "four": (4, 1),
    "eight": (8, 1),
    "fsdp": (8, 8),
    "both": (8, 4),
}


@pytest.fixture(scope="module")
def one_device(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("one") / "run"
    run_debug(latents, workdir, EVERY_STEP)
    return lines(workdir)


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one"])
def test_any_number_of_devices_computes_what_one_does(
    latents: Path, tmp_path: Path, one_device: list[dict[str, Any]], mesh: str
):
    """Twenty steps: the same losses, which also tell that the same records came in the same
    order.
    """
    count, fsdp = MESHES[mesh]
    options = Options(devices=jax.local_devices()[:count], fsdp=fsdp)
    run_debug(latents, tmp_path, EVERY_STEP, options=options)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == list(range(1, 21))
    for name in ("loss", "grad_norm", "update_norm", "param_norm"):
        expected = [line[name] for line in one_device]
        np.testing.assert_allclose(
            [line[name] for line in found], expected, rtol=2e-5, err_msg=name
        )
    for ours, theirs in zip(found, one_device, strict=True):
        assert ours.keys() == theirs.keys(), "the tenths of t that had records are among them"


def test_a_run_goes_on_on_another_number_of_devices(
    latents: Path, tmp_path: Path, one_device: list[dict[str, Any]]
):
    stops = iter([False] * 6 + [True])
    eight = Options(devices=jax.local_devices(), fsdp=8, should_stop=lambda: next(stops))
    assert run_debug(latents, tmp_path, EVERY_STEP, options=eight).stopped
    assert run_debug(latents, tmp_path, EVERY_STEP).step == 20
    found = lines(tmp_path)
    assert [line["step"] for line in found] == list(range(1, 21))
    np.testing.assert_allclose(
        [line["loss"] for line in found], [line["loss"] for line in one_device], rtol=2e-5
    )


def test_a_finished_run_is_left_alone_and_can_be_made_longer(latents: Path, tmp_path: Path):
    assert run_debug(latents, tmp_path / "a").step == 20
    assert run_debug(latents, tmp_path / "a").step == 20
    longer = debug_plan(latents, "train.steps=30")
    assert run_debug(latents, tmp_path / "a", "train.steps=30").step == 30
    run_debug(latents, tmp_path / "b", "train.steps=30")
    jax.tree.map(
        np.testing.assert_array_equal,
        saved(longer, tmp_path / "a", 30),
        saved(longer, tmp_path / "b", 30),
    )


def test_it_learns_and_the_average_follows(latents: Path, tmp_path: Path):
    more = ["train.steps=150", "optimizer.learning_rate=3e-3", "train.checkpoint_every=150"]
    run_debug(latents, tmp_path, *more)
    losses = [loss for _, loss, _ in curve(tmp_path)]
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    state, _, meta = saved(debug_plan(latents, *more), tmp_path, 150)
    assert meta["recipe"]["train"]["steps"] == 150
    ema = state.ema["ema"]
    distance = [
        float(np.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (state.params, ema)), strict=True)
    ]
    assert 0 < max(distance) < 0.1


def test_a_few_records_can_be_overfitted(latents: Path, tmp_path: Path):
    """With t and noise drawn afresh the loss of two records falls far below that of the dataset."""
    more = ["train.steps=300", "optimizer.learning_rate=1e-2", "train.checkpoint_every=300"]
    run_debug(latents, tmp_path / "all", *more)
    run_debug(latents, tmp_path / "two", *more, "train.overfit=2")
    tail = {
        name: np.mean([loss for _, loss, _ in curve(tmp_path / name)][-10:])
        for name in ("all", "two")
    }
    assert tail["two"] < 0.6 * tail["all"]


def test_previews_get_the_averaged_weights_and_their_numbers_are_logged(
    latents: Path, tmp_path: Path
):
    seen: dict[int, TrainedModel] = {}

    class Drawn:
        images = {"samples": np.full((4, 6, 3), 7, np.uint8)}  # noqa: RUF012
        scalars = {"fd": 1.5}  # noqa: RUF012

    def preview(trained: TrainedModel) -> Drawn:
        seen[trained.step] = replace(trained, params=jax.tree.map(np.array, trained.params))
        return Drawn()

    more = ["preview.every=10", "train.checkpoint_every=10"]
    run_debug(latents, tmp_path, *more, options=replace(ONE, preview=preview))
    assert sorted(seen) == [10, 20]
    plan = debug_plan(latents, *more)
    for step, trained in seen.items():
        assert trained.weights == "ema"
        jax.tree.map(
            np.testing.assert_array_equal, trained.params, saved(plan, tmp_path, step)[0].ema["ema"]
        )
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"preview_fd": 1.5' in line for line in text) == 2


def test_a_preview_that_fails_is_told_and_costs_nothing_else(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    def preview(trained: TrainedModel) -> Any:
        raise ValueError(f"no paint at step {trained.step}")

    assert (
        run_debug(latents, tmp_path, "preview.every=10", options=replace(ONE, preview=preview)).step
        == 20
    )
    told = capfd.readouterr().err
    assert "step 10: no preview (ValueError: no paint at step 10); training goes on" in told
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 20]


def test_a_run_killed_between_its_first_snapshot_and_its_first_checkpoint_begins_again(
    latents: Path, tmp_path: Path
):
    more = ["train.ema_power=[0.1]", "train.ema_snapshot_every=2", "train.checkpoint_every=20"]
    calls = iter(range(5))
    with pytest.raises(StopIteration):
        run_debug(
            latents, tmp_path, *more, options=replace(ONE, should_stop=lambda: next(calls) < 0)
        )
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert run_debug(latents, tmp_path, *more).step == 20
    kept = sorted(int(path.name) for path in (tmp_path / "snapshots").glob("[0-9]*"))
    assert kept == list(range(2, 21, 2))


def test_a_run_that_has_no_checkpoint_yet_may_begin_anew_with_another_recipe(
    latents: Path, tmp_path: Path
):
    first = [
        "train.ema_power=[0.1]",
        "train.ema_snapshot_every=2",
        "train.checkpoint_every=20",
        "train.log_every=1",
    ]
    calls = iter(range(5))
    with pytest.raises(StopIteration):
        run_debug(
            latents, tmp_path, *first, options=replace(ONE, should_stop=lambda: next(calls) < 0)
        )
    assert list((tmp_path / "snapshots").glob("[0-9]*"))
    other = ["model.depth=1", "train.steps=3", "train.log_every=1"]
    assert run_debug(latents, tmp_path, *other).step == 3
    assert not list((tmp_path / "snapshots").glob("[0-9]*"))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    with pytest.raises(UserError, match=r"model.depth was 1 and is now 2"):
        run_debug(latents, tmp_path, *first)


@pytest.mark.parametrize("kept", [True, False])
def test_a_line_of_metrics_is_that_of_all_its_steps_after_a_resume(
    latents: Path, tmp_path: Path, kept: bool
):
    """Stopped in the midst of an interval; a checkpoint of an earlier release has no sums, and the
    line then begins with the steps after it.
    """
    more = ["train.log_every=8", "train.checkpoint_every=100", "train.steps=16"]
    run_debug(latents, tmp_path / "calm", *more)
    asked = iter([False] * 10 + [True])
    run_debug(
        latents, tmp_path / "run", *more, options=replace(ONE, should_stop=lambda: next(asked))
    )
    if not kept:
        _forget_interval(tmp_path / "run" / "checkpoints" / "11")
    run_debug(latents, tmp_path / "run", *more)
    calm, found = lines(tmp_path / "calm"), lines(tmp_path / "run")
    assert [line["step"] for line in found] == [8, 16]
    same = [
        name
        for name in calm[1]
        if name.startswith(("loss", "grad", "update", "param", "learning", "skipped"))
        and calm[1][name] == found[1].get(name)
    ]
    assert ("loss" in same) == kept
    assert ("loss_t0.5" in same) == kept
    assert {"param_norm", "learning_rate", "skipped"} < set(same)


def _forget_interval(checkpoint: Path) -> None:
    """What an earlier release would have saved."""
    meta = checkpoint / "meta" / "metadata"
    content = json.loads(meta.read_text())
    del content["interval"]
    meta.write_text(json.dumps(content))
    (checkpoint / CHECKSUMS).unlink()


def test_checkpoints_are_kept_by_policy(latents: Path, tmp_path: Path):
    policy = [
        "train.keep=2",
        "train.keep_every=8",
        "train.keep_best=1",
        "train.holdout=4",
        "train.checkpoint_every=2",
    ]
    run_debug(latents, tmp_path, *policy, "optimizer.learning_rate=1e-2")
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    losses = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        if "val_loss_ema" in line:
            content = json.loads(line)
            losses[content["step"]] = content["val_loss_ema"]
    assert sorted(losses) == list(range(2, 21, 2)), "every checkpoint is judged"
    best = min(losses, key=lambda step: losses[step])
    assert set(kept) == {8, 16, 18, 20, best}


def test_what_does_not_fit_is_refused_before_anything_is_written(latents: Path, tmp_path: Path):
    other = tmp_path / "other"
    write_dataset(other, records=21)
    workdir = tmp_path / "run"
    run_debug(latents, workdir, "train.steps=1")
    before = sorted(path.relative_to(workdir) for path in workdir.rglob("*"))
    for data, override, message in (
        (other, "train.steps=20", "another dataset"),
        (latents, "model.depth=1", "model.depth was 2"),
        (latents, "train.overfit=3", "train.overfit was None and is now 3"),
    ):
        with pytest.raises(UserError, match=message):
            run_debug(data, workdir, override)
    assert sorted(path.relative_to(workdir) for path in workdir.rglob("*")) == before
    with pytest.raises(
        UserError, match=r"batch_size 8 is not divisible by 3 devices; try --set train.batch_size=9"
    ):
        run_debug(latents, tmp_path / "new", options=Options(devices=jax.local_devices()[:3]))
    with pytest.raises(
        UserError,
        match=r"--fsdp 3: the number of devices, 8, is not divisible by it; use one of 1, 2, 4, 8",
    ):
        run_debug(latents, tmp_path / "new", options=Options(fsdp=3))
    assert not (tmp_path / "new").exists()


def test_the_dataset_may_move(latents: Path, tmp_path: Path):
    run_debug(latents, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(latents, moved)
    assert run_debug(moved, tmp_path / "run", "train.steps=22").step == 22


def test_validation_on_another_dataset(latents: Path, tmp_path: Path):
    write_dataset(tmp_path / "val", records=13)
    reader = LatentReader(tmp_path / "val")
    options = replace(ONE, validate_on=reader)
    run_debug(latents, tmp_path / "run", "train.validate_every=10", options=options)
    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum("val_loss" in line for line in text) == 2
