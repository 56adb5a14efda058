"""Checkpoints: what is saved comes back, in part or whole, and is not disturbed by the steps that follow."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.checkpoint import Checkpoints, load_for_sampling, with_sharding
from flowtrain.model import make_network
from flowtrain.sharding import data_mesh, replicated
from flowtrain.state import TrainState
from schemas.config import make_recipe
from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.run import DatasetRef, Run, write_run

RECIPE = make_recipe({"model": {"depth": 1, "width": 8, "heads": 2}, "train": {"steps": 1, "batch_size": 1}})
SHAPE, CLASSES = (4, 4, 2), ("a", "b", "c")


def _state() -> TrainState:
    params = jax.jit(make_network(RECIPE.model, SHAPE, len(CLASSES)).init)(jax.random.key(0))
    opt = ({"mu": jax.tree.map(lambda p: p + 2, params)}, jnp.int32(7))
    return TrainState(jnp.int32(7), params, jax.tree.map(lambda p: p + 1, params), opt)


def _save(workdir: Path, steps: tuple[int, ...], state: TrainState, *, keep: int = 2) -> None:
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state, {"next_index": step}, {"step": step})


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    dataset = DatasetRef(path="", digest="", split="", records=1, flips=False, source="", resolution=16)
    normalization = Normalization(offset=(0.0,) * 2, scale=(1.0,) * 2)
    run = Run(
        recipe=RECIPE,
        dataset=dataset,
        latent_shape=SHAPE,
        classes=CLASSES,
        normalization=normalization,
        vae=None,
        parameters=1,
        versions={},
    )
    write_run(tmp_path, run)
    return tmp_path


def test_a_state_comes_back_bitwise_onto_any_devices(tmp_path: Path):
    state = _state()
    _save(tmp_path, (3, 5, 7), state)
    for mesh in (data_mesh(1, jax.local_devices()[:1]), data_mesh(8)):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            like = with_sharding(jax.eval_shape(_state), replicated(mesh))
            restored, data, meta = checkpoints.restore(checkpoints.latest() or 0, like)
        assert (data, meta) == ({"next_index": 7}, {"step": 7})
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {replicated(mesh)}


def test_only_the_last_ones_are_kept_and_leftovers_removed(tmp_path: Path):
    _save(tmp_path, (3, 5, 7), _state())
    directory = tmp_path / "checkpoints"
    (directory / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        assert {path.name for path in directory.iterdir()} >= {"5", "7"}
    _save(tmp_path, (8,), _state())  # orbax clears away in the background, and waits for that before it saves
    assert sorted(path.name for path in directory.iterdir()) == ["7", "8"]


def test_a_pending_save_does_not_see_donated_buffers(tmp_path: Path):
    """The step after a save overwrites the state in place while the files are still being written."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    big = {"a": jnp.arange(2_000_000.0)}  # not done within the blocking part
    state = TrainState(jnp.int32(1), big, jax.tree.map(jnp.copy, big), (jnp.zeros(3),))
    like = with_sharding(jax.eval_shape(lambda: state), replicated(data_mesh(1, jax.local_devices()[:1])))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored, _, _ = checkpoints.restore(1, like)
    np.testing.assert_array_equal(restored.params["a"], np.arange(2_000_000.0))
    np.testing.assert_array_equal(restored.ema["a"], np.arange(2_000_000.0))


def test_sampling_restores_the_weights_asked_for(workdir: Path):
    state = _state()
    _save(workdir, (3, 7), state)
    for weights in ("ema", "params"):
        trained = load_for_sampling(workdir, weights=weights)
        assert (trained.step, trained.weights, trained.null_class) == (7, weights, 3)
        jax.tree.map(np.testing.assert_array_equal, trained.params, getattr(state, weights))
    x = jnp.ones((1, *SHAPE))
    assert trained.velocity(trained.params, x, jnp.zeros(1), jnp.zeros(1, jnp.int32)).shape == x.shape
    assert load_for_sampling(workdir, step=3).step == 3


def test_sampling_needs_nothing_but_the_item_that_it_restores(workdir: Path):
    import shutil

    _save(workdir, (7,), _state())
    for item in ("params", "opt", "data"):
        shutil.rmtree(workdir / "checkpoints" / "7" / item)
    assert load_for_sampling(workdir).step == 7


def test_a_missing_checkpoint_is_one_line(workdir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_for_sampling(workdir)
    _save(workdir, (3, 7), _state())
    with pytest.raises(UserError, match="no checkpoint of step 4; there are 3, 7"):
        load_for_sampling(workdir, step=4)
    with pytest.raises(UserError, match="no training run"):
        load_for_sampling(tmp_path / "elsewhere")
