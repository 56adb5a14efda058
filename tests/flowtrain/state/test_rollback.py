"""Bad numbers: steps are skipped and counted, then the run goes back, past the batches that made
them.
"""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from flowtrain.records.order import batch_records
from flowtrain.replay import replay
from flowtrain.state.rollback import Position, batch_of, read_rollbacks
from schemas.errors import UserError
from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import ONE, curve, debug_plan, lines, run_debug, saved

RECORDS, POISONED = 200, 7
# A poisoned record is in one batch of each epoch, of 25 batches.
RUN = ["train.steps=40", "train.log_every=1", "train.checkpoint_every=3", "train.keep=20"]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which one record has a deviation that overflows: its loss is not finite."""
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=RECORDS, logvar={POISONED: 60000.0})
    return path


def _bad_batch(path: Path, epoch: int) -> int:
    """Number of the batch that holds the poisoned record."""
    plan = debug_plan(path)
    batches = [
        batch_records(plan.recipe.train.seed, b, 8, plan.selection)
        for b in range(25 * epoch, 25 * (epoch + 1))
    ]
    return 25 * epoch + next(b for b, (_, index) in enumerate(batches) if POISONED in index)


def test_positions():
    """Back from step 7 to 3, then, at its old number, from 5 to 4."""
    first = Position(step=7).back(bad=7, good=3)
    assert (first.step, first.batch) == (3, 7), "the batch after that of step 7"
    assert batch_of(3, first.rollbacks) == 2, "steps before it keep theirs"
    second = Position(5, first.rollbacks).back(bad=5, good=4)
    assert [batch_of(step, second.rollbacks) for step in (3, 4, 5, 6)] == [2, 7, 9, 10]
    assert Position().batch == 0
    assert Position().advanced() == Position(1)


def test_a_bad_step_is_skipped_and_counted(poisoned: Path, tmp_path: Path):
    run_debug(poisoned, tmp_path, *RUN)
    bad = _bad_batch(poisoned, 0) + 1
    found = {line["step"]: line for line in lines(tmp_path)}
    counted = {step: line["skipped"] for step, line in found.items()}
    assert [counted.get(bad - 1, 0), counted[bad + 1]] == [0, 1]
    assert all(np.isfinite(line["loss"]) for line in found.values())
    state, _, meta = saved(debug_plan(poisoned, *RUN), tmp_path, 40)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    expected = sum(_bad_batch(poisoned, epoch) < 40 for epoch in (0, 1))
    assert (int(state.skipped), meta["skipped"]) == (expected, expected)


def test_too_many_go_back_past_the_bad_batches(
    poisoned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    one = [*RUN, "train.max_bad_steps=1"]
    run_debug(poisoned, tmp_path, *one)
    bad = _bad_batch(poisoned, 0) + 1
    good = 3 * ((bad - 1) // 3)
    told = capfd.readouterr().err
    assert (
        f"step {bad}: loss or gradient was not finite for one step; back to the checkpoint" in told
    )
    assert f"the checkpoint of step {good}, past the batches of the steps between" in told
    rollbacks = read_rollbacks(tmp_path)
    assert rollbacks[0] == (good, bad - good)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 41))
    state, data, meta = saved(debug_plan(poisoned, *one), tmp_path, 40)
    assert int(state.skipped) == 0
    assert data == {"next_index": 40 + rollbacks[-1][1]}
    assert [tuple(entry) for entry in meta["rollbacks"]] == list(rollbacks)
    plan = debug_plan(poisoned, *one)
    after = [record["index"] for record in replay(plan, tmp_path, good + 1)]
    assert after == batch_records(plan.recipe.train.seed, bad, 8, plan.selection)[1].tolist()


def test_a_run_that_went_back_and_was_stopped_ends_with_the_same_bits(
    poisoned: Path, tmp_path: Path
):
    one = [*RUN, "train.max_bad_steps=1", "train.keep=1", "train.log_every=4"]
    plan, bad = debug_plan(poisoned, *one), _bad_batch(poisoned, 0) + 1
    run_debug(poisoned, tmp_path / "calm", *one)
    # right before the bad step, at it, and after the run went back
    for calls in (
        max(bad - 1, 1),
        1,
        2,
        3,
    ):
        asked = iter(range(1, 1000))
        options = replace(ONE, should_stop=lambda asked=asked, calls=calls: next(asked) >= calls)
        run_debug(poisoned, tmp_path / "rough", *one, options=options)
    run_debug(poisoned, tmp_path / "rough", *one)
    calm, rough = saved(plan, tmp_path / "calm", 40), saved(plan, tmp_path / "rough", 40)
    jax.tree.map(np.testing.assert_array_equal, rough[0], calm[0])
    assert read_rollbacks(tmp_path / "calm") == read_rollbacks(tmp_path / "rough") != ()
    assert curve(tmp_path / "rough") == curve(tmp_path / "calm"), "checkpoints in mid-interval too"


def test_a_line_of_metrics_is_that_of_its_steps_after_going_back(poisoned: Path, tmp_path: Path):
    """To a checkpoint in the midst of an interval: the steps before it count."""
    one = [*RUN, "train.max_bad_steps=1"]
    run_debug(poisoned, tmp_path / "each", *one)
    run_debug(poisoned, tmp_path / "five", *one, "train.log_every=5")
    assert any(good % 5 for good, _ in read_rollbacks(tmp_path / "five"))
    loss = {step: each for step, each, _ in curve(tmp_path / "each")}
    expected = {step: np.mean([loss[step - k] for k in range(5)]) for step in range(5, 41, 5)}
    found = {step: each for step, each, _ in curve(tmp_path / "five")}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_run_that_diverges_ends_with_advice_and_nothing_bad_is_saved(
    poisoned: Path, tmp_path: Path
):
    with pytest.raises(
        UserError,
        match=r"10 steps in a row, and there is no checkpoint to go back to; train in a new",
    ):
        run_debug(poisoned, tmp_path / "a", *RUN, "optimizer.learning_rate=1e30")
    assert not list((tmp_path / "a" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"the run has gone back 0 times \(train.max_rollbacks\)"):
        run_debug(poisoned, tmp_path / "b", *RUN, "train.max_bad_steps=1", "train.max_rollbacks=0")
    state, _, _ = saved(debug_plan(poisoned, *RUN), tmp_path / "b", 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
