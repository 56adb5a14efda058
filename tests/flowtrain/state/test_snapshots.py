"""Snapshots of power-function averages: when there are some, and that a run which goes on leaves
the same ones.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from flowtrain.state.posthoc import reconstruct
from flowtrain.state.snapshots import Snapshots
from schemas.config import TrainConfig
from schemas.errors import UserError
from tests.flowtrain.state.test_checksums import flip

CONFIG = TrainConfig(
    steps=40, batch_size=1, ema_extra=(0.9,), ema_power=(0.05, 0.1), ema_snapshot_every=10
)
TARGET = {
    "a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[3]))
}


def _ema(step: int) -> dict[str, dict[str, jax.Array]]:
    """Averages that tell of which step they are."""
    names = ("ema", "ema0.9", "power0.05", "power0.1")
    return {name: {"a": jnp.full(3, step + k / 10, jnp.float32)} for k, name in enumerate(names)}


def _of(workdir: Path, step: int, name: str) -> float:
    with Snapshots(workdir, CONFIG, read_only=True) as snapshots:
        loaded = snapshots.load(step, name, TARGET)["a"]
    assert loaded.sharding == TARGET["a"].sharding
    (value,) = set(np.asarray(loaded).tolist())
    return value


def test_power_averages_alone_are_kept_and_all_of_them_stay(tmp_path: Path):
    with Snapshots(tmp_path, CONFIG) as snapshots:
        assert snapshots.steps() == []
        assert snapshots.widths == {"power0.05": 0.05, "power0.1": 0.1}
        for step in (10, 20, 30, 40):
            snapshots.save(step, _ema(step))
    assert {path.name for path in (tmp_path / "snapshots" / "20").iterdir() if path.is_dir()} == {
        *snapshots.widths
    }
    with Snapshots(tmp_path, CONFIG, read_only=True) as snapshots:
        assert snapshots.steps() == [10, 20, 30, 40]
    assert _of(tmp_path, 20, "power0.05") == pytest.approx(20.2)
    assert _of(tmp_path, 40, "power0.1") == pytest.approx(40.3)


def test_going_on_from_a_checkpoint_leaves_the_snapshots_of_a_run_that_was_not_stopped(
    tmp_path: Path,
):
    with Snapshots(tmp_path, CONFIG) as snapshots:
        for step in (10, 20, 30):
            snapshots.save(step, _ema(step + 100))
        snapshots.resume(25, _ema(25))
        assert snapshots.steps() == [10, 20]
        snapshots.save(30, _ema(30))
        snapshots.resume(20, _ema(20))
        assert snapshots.steps() == [10, 20]
    # it was there and is not written again
    assert _of(tmp_path, 20, "power0.05") == pytest.approx(120.2)
    with Snapshots(tmp_path, CONFIG) as snapshots:
        # the checkpoint of step 30 was whole, and the snapshot was not
        snapshots.resume(30, _ema(30))
        assert snapshots.steps() == [10, 20, 30]
        snapshots.cut(0)
        assert snapshots.steps() == []
        snapshots.resume(0, _ema(0))
        assert snapshots.steps() == []
        snapshots.save(10, _ema(10))
    assert _of(tmp_path, 10, "power0.1") == pytest.approx(10.3)


def test_without_power_averages_nothing_is_kept(tmp_path: Path):
    with Snapshots(
        tmp_path, TrainConfig(steps=40, batch_size=1, ema_snapshot_every=10)
    ) as snapshots:
        snapshots.save(10, _ema(10))
        snapshots.resume(10, _ema(10))
        assert snapshots.steps() == []
    assert list(tmp_path.iterdir()) == []


def test_damage_is_one_line(tmp_path: Path):
    with Snapshots(tmp_path, CONFIG) as snapshots:
        snapshots.save(10, _ema(10))
    (tmp_path / "snapshots" / "10" / "power0.1" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"snapshots/10: cannot read the snapshot .* delete"):
        _of(tmp_path, 10, "power0.1")
    assert _of(tmp_path, 10, "power0.05") == pytest.approx(10.2)


def test_a_flipped_bit_is_refused_when_another_width_is_made(tmp_path: Path):
    with Snapshots(tmp_path, CONFIG) as snapshots:
        for step in (10, 20, 30, 40):
            snapshots.save(step, _ema(step))
    with Snapshots(tmp_path, CONFIG, read_only=True) as snapshots:
        assert reconstruct(snapshots, 0.07, TARGET)[0] == 40
        flip(next((tmp_path / "snapshots" / "20" / "power0.05").glob("ocdbt.*/d/*")), 99)
        with pytest.raises(
            UserError, match=r"snapshots/20: cannot read the snapshot \(power0\.05/o"
        ):
            reconstruct(snapshots, 0.07, TARGET)
