"""Checkpoints: what is saved comes back, in part or whole, on any devices; and those stay that the
recipe says.

What holds for folders of arrays in general is in test_folders.py.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowtrain.devices.sharding import make_mesh, state_shardings
from flowtrain.model import make_network
from flowtrain.state.checkpoint import Checkpoints, load_for_sampling, with_sharding
from flowtrain.state.ema import average_names, gamma_of_width
from flowtrain.state.snapshots import Snapshots
from flowtrain.state.train_state import TrainState
from schemas.config import TrainConfig
from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run, write_run

TRAIN = {
    "steps": 1,
    "batch_size": 1,
    "ema_extra": [0.999],
    "ema_power": [0.05, 0.1],
    "ema_snapshot_every": 50,
}
RECIPE = make_recipe({"model": {"depth": 1, "width": 8, "heads": 2}, "train": TRAIN})
SHAPE, CLASSES = (4, 4, 2), ("a", "b", "c")
NETWORK = make_network(RECIPE.model, SHAPE, len(CLASSES))


def _random(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), NETWORK.abstract
    )


def _state(step: int = 7) -> TrainState:
    """Of a network, with every array another one."""
    ema = {name: _random(k + 1) for k, name in enumerate(average_names(RECIPE.train))}
    opt = (optax.ScaleByAdamState(jnp.int32(5), _random(10), _random(11)), optax.EmptyState())
    return TrainState(jnp.int32(step), _random(0), ema, opt, jnp.int32(2), jnp.int32(1))


def _save(workdir: Path, *steps: int) -> None:
    with Checkpoints(workdir, RECIPE.train) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step), {"next_index": step}, {"step": step})


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    dataset = DatasetRef(
        path="", digest="", split="", records=1, flips=False, source="", resolution=16
    )
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


def test_a_state_comes_back_bitwise_onto_other_meshes(tmp_path: Path):
    meshes = {"one": make_mesh(jax.devices()[:1]), "fsdp": make_mesh(fsdp=8), "data": make_mesh()}
    abstract = jax.eval_shape(_state)
    places = {name: state_shardings(mesh, abstract) for name, mesh in meshes.items()}
    for begin, go_on in (("one", "fsdp"), ("fsdp", "data"), ("data", "one")):
        workdir, state = tmp_path / f"{begin}-{go_on}", _state()
        with Checkpoints(workdir, RECIPE.train) as checkpoints:
            placed = jax.device_put(state, places[begin])
            checkpoints.save(7, placed, {"next_index": 9}, {"step": 7, "rollbacks": [[3, 2]]})
        with Checkpoints(workdir, RECIPE.train) as checkpoints:
            like = with_sharding(abstract, places[go_on])
            restored, data, meta = checkpoints.restore(checkpoints.latest() or 0, like)
        assert data == {"next_index": 9}
        assert meta == {"step": 7, "rollbacks": [[3, 2]], "skipped": 2, "streak": 1}
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == places[go_on]
    cut = places["fsdp"].params["blocks"][0]["mlp_in"]["kernel"]
    assert not cut.is_fully_replicated


TINY = {"a": jnp.zeros(3)}
SMALL = TrainState(jnp.int32(0), TINY, {"ema": TINY}, TINY, jnp.int32(0), jnp.int32(0))
NOTHING: dict[int, float | None] = {}


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize(
    ("kept", "steps", "losses", "left"),
    [
        ({"keep": 2}, range(1, 5), NOTHING, [3, 4]),
        (
            {"keep": 1, "keep_every": 10, "checkpoint_every": 5},
            range(5, 26, 5),
            NOTHING,
            [10, 20, 25],
        ),
        (
            {"keep": 1, "keep_best": 2},
            range(1, 7),
            {1: math.nan, 2: 0.1, 3: 0.3, 4: 0.2, 6: 0.5},
            [2, 4, 6],
        ),
        ({"keep": 1, "keep_best": 1}, range(1, 5), {1: 0.5, 2: 0.1, 3: 0.1}, [3, 4]),
        ({"keep": 1, "keep_best": 3}, range(1, 4), {3: 0.5}, [3]),
        ({"keep": 1, "checkpoint_every": 3}, range(1, 6), NOTHING, [3, 5]),
        (
            {"keep": 1, "keep_every": 4, "keep_best": 1, "checkpoint_every": 2},
            range(1, 8),
            {3: 0.1, 5: 0.2},
            [3, 4, 6, 7],
        ),
    ],
)
def test_those_stay_that_the_recipe_says(
    tmp_path: Path,
    kept: dict[str, Any],
    steps: range,
    losses: dict[int, float | None],
    left: list[int],
    reopen: bool,
):
    """In one process, and when every checkpoint is saved by another one, which knows what is on
    disk only.
    """
    config = TrainConfig(steps=1, batch_size=1, **kept)
    parts = [[step] for step in steps] if reopen else [list(steps)]
    for part in parts:
        with Checkpoints(tmp_path, config) as checkpoints:
            for step in part:
                checkpoints.save(step, SMALL, {}, {}, losses.get(step))
                assert checkpoints.latest() == step
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.steps() == left
        assert checkpoints.latest_regular() == next(
            (s for s in left[::-1] if s % config.checkpoint_every == 0), None
        )
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == left


def test_without_checkpoints_none_is_the_latest(tmp_path: Path):
    with Checkpoints(tmp_path, RECIPE.train) as checkpoints:
        assert checkpoints.latest() is checkpoints.latest_regular() is None


def test_sampling_restores_the_weights_asked_for(workdir: Path):
    _save(workdir, 3, 7)
    state = _state()
    for weights in ("ema", "ema0.999", "power0.05", "params"):
        trained = load_for_sampling(workdir, weights=weights)
        assert (trained.step, trained.weights, trained.null_class) == (7, weights, 3)
        expected = state.params if weights == "params" else state.ema[weights]
        jax.tree.map(np.testing.assert_array_equal, trained.params, expected)
    x = jnp.ones((1, *SHAPE))
    assert (
        jax.eval_shape(
            trained.predict, trained.params, x, jnp.zeros(1), jnp.zeros(1, jnp.int32)
        ).shape
        == x.shape
    )
    assert load_for_sampling(workdir, step=3).step == 3


def test_sampling_needs_nothing_but_the_item_that_it_restores(workdir: Path):
    _save(workdir, 7)
    for path in (workdir / "checkpoints" / "7").iterdir():
        if path.is_dir() and path.name != "ema0.999":
            shutil.rmtree(path)
    assert load_for_sampling(workdir, weights="ema0.999").step == 7


def test_sampling_with_an_average_made_after_the_run(workdir: Path):
    """Snapshots as a run leaves them give what an average of that width would have been."""
    first, second, steps = _random(0), _random(1), 400
    # parameters go from the first to the second, past the first, and back
    shares = np.sin(np.linspace(0, 6, steps))

    def average(width: float, step: int) -> float:
        """That of the share, by the integrals of the density; parameters are linear in it."""
        return float(
            np.diff((np.arange(step + 1) / step) ** (gamma_of_width(width) + 1)) @ shares[:step]
        )

    with Snapshots(workdir, RECIPE.train) as snapshots:
        for step in range(50, steps + 1, 50):
            averages = {
                f"power{width}": _between(first, second, average(width, step))
                for width in (0.05, 0.1)
            }
            snapshots.save(step, averages)
    trained = load_for_sampling(workdir, weights="posthoc0.07")
    assert (trained.step, trained.weights) == (steps, "posthoc0.07")
    right = _between(first, second, average(0.07, steps))
    nearest = min(
        _distance(_between(first, second, average(width, steps)), right) for width in (0.05, 0.1)
    )
    assert _distance(trained.params, right) < nearest / 30
    assert load_for_sampling(workdir, step=200, weights="posthoc0.07").step == 200
    with pytest.raises(UserError, match="no snapshot of step 30; there are 50, 100"):
        load_for_sampling(workdir, step=30, weights="posthoc0.07")


def _distance(a: Any, b: Any) -> float:
    return float(
        np.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(_leaves(a), _leaves(b), strict=True)))
    )


def _leaves(tree: Any) -> list[Any]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _between(first: Any, second: Any, share: float) -> Any:
    return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), first, second)


def test_what_is_not_there_is_one_line(workdir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_for_sampling(workdir)
    with pytest.raises(UserError, match="no snapshots to reconstruct"):
        load_for_sampling(workdir, weights="posthoc0.1")
    assert [path.name for path in workdir.iterdir()] == ["run.json"]
    _save(workdir, 3, 7)
    with pytest.raises(UserError, match="no checkpoint of step 4; there are 3, 7"):
        load_for_sampling(workdir, step=4)
    with pytest.raises(
        UserError,
        match=r"no weights 'ema0\.9'; this run keeps ema, ema0\.999, power0\.05, power0\.1, params",
    ):
        load_for_sampling(workdir, weights="ema0.9")
    with pytest.raises(UserError, match="no training run"):
        load_for_sampling(tmp_path / "elsewhere")
    shutil.rmtree(workdir / "checkpoints" / "7" / "ema")
    with pytest.raises(UserError, match=r"checkpoints/7: cannot read the checkpoint .* delete"):
        load_for_sampling(workdir)
