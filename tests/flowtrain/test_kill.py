"""Runs killed at random moments, in the middle of saves too, end with the bits of one that was left
alone.
"""

import random
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import (
    command,
    curve,
    debug_plan,
    finish,
    last_step,
    saved,
    send_when,
    start,
)

STEPS, KILLS = 500, 10
RUN = [
    f"train.steps={STEPS}",
    "train.checkpoint_every=8",
    "train.log_every=4",
    "optimizer.warmup_steps=9",
]
RUN += [
    "train.ema_extra=[0.5]",
    "train.ema_power=[0.1]",
    "train.ema_snapshot_every=16",
    "train.holdout=2",
]
RUN += ["train.validate_every=24"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=3, flips=True)
    return path


def _saving(workdir: Path, after: int) -> bool:
    """Whether a save of a step beyond `after` is half done at this moment."""
    unfinished = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    return any(int(path.name.split(".")[0]) > after for path in unfinished)


def test_ten_kills_at_random_moments_change_no_bit(latents: Path, tmp_path: Path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    finish(start(command(latents, calm, overrides=RUN)))

    drawn, middle = random.Random(4), 0
    for kill in range(KILLS):
        done = last_step(rough)
        steps = done + drawn.randrange(4, 36)
        moments = {
            0: (rough / "run.json").exists,  # before anything was computed
            1: lambda steps=steps: last_step(rough) >= steps,
            2: lambda done=done: _saving(rough, done + 8),
        }
        process = start(command(latents, rough, overrides=RUN))
        which = 0 if kill == 0 else drawn.choice([1, 2])
        assert send_when(process, moments[which], signal.SIGKILL) == -signal.SIGKILL
        middle += any((rough / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    assert middle >= 2, "no kill met a save half done"
    stopping = start(command(latents, rough, overrides=RUN))
    done = last_step(rough)
    assert done < STEPS - 40
    assert send_when(stopping, lambda: last_step(rough) > done + 12, signal.SIGTERM) == 75
    finish(start(command(latents, rough, overrides=RUN)))

    plan = debug_plan(latents, *RUN)
    expected, actual = saved(plan, calm, STEPS), saved(plan, rough, STEPS)
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert set(actual[0].ema) == {"ema", "ema0.5", "power0.1"}
    assert actual[1] == {"next_index": STEPS}
    assert [step for step, _, _ in curve(rough)] == list(range(4, STEPS + 1, 4))
    # also where the stop came in the midst of an interval
    assert curve(rough) == curve(calm)
    kept = [
        sorted(path.name for path in (workdir / "snapshots").iterdir()) for workdir in (calm, rough)
    ]
    assert kept[0] == kept[1]
