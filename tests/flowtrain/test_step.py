"""The step against one written out in NumPy, with gradients by hand; in parts, on meshes, and on
bad batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from flowtrain.devices.sharding import (
    batch_sharding,
    constrain_batch,
    make_mesh,
    replicated,
    state_shardings,
)
from flowtrain.model import Network, make_network
from flowtrain.optim import make_optimizer
from flowtrain.records.counter import Purpose
from flowtrain.state.ema import gamma_of_width
from flowtrain.state.train_state import TrainState
from flowtrain.step import Setup, init_state, make_train_step, make_validation_step
from schemas.recipes import make_recipe

SHAPE, CLASSES, BATCH, WIDTH = (4, 4, 4), 3, 16, 8
OFFSET, SCALE = (0.1, -0.2, 0.3, 0.0), (0.5, 1.0, 2.0, 1.5)
CONTENT: dict[str, Any] = {
    "model": {"depth": 1, "width": 16, "heads": 2},
    "objective": {"label_drop": 0.3, "logit_mean": 0.2, "logit_std": 0.8},
    "optimizer": {"learning_rate": 0.02, "warmup_steps": 5, "weight_decay": 0.1, "clip_norm": 0.5},
    "train": {
        "steps": 9,
        "batch_size": BATCH,
        "ema_decay": 0.9,
        "ema_extra": [0.5],
        "ema_power": [0.1],
    },
}
Tree = dict[str, Any]


def _hidden_layer() -> Network:
    """out tanh(x w + t u + e[label]) + b at each cell: small enough to differentiate by hand."""
    shapes = {
        "w": (4, WIDTH),
        "u": (WIDTH,),
        "e": (CLASSES + 1, WIDTH),
        "out": (WIDTH, 4),
        "b": (4,),
    }

    def predict(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        condition = t[:, None] * params["u"][None, :] + params["e"][label]
        hidden = jnp.tanh(x @ params["w"] + condition[:, None, None, :])
        return hidden @ params["out"] + params["b"][None, None, None, :]

    def init(key: jax.Array) -> Any:
        return {name: jax.random.normal(key, shape) for name, shape in shapes.items()}

    return Network(
        init,
        predict,
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()},
    )


def _setup(network: Network, **train: Any) -> Setup:
    recipe = make_recipe({**CONTENT, "train": {**CONTENT["train"], **train}})
    return Setup(recipe, network, SHAPE, CLASSES, "moments", OFFSET, SCALE)


def _state(setup: Setup, scale: float = 0.5) -> TrainState:
    """Before the first step, from random parameters; without compiling their initialisation."""
    rng = np.random.default_rng(0)

    def params() -> Any:
        return jax.tree.map(
            lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), abstract
        )

    abstract = setup.network.abstract
    drawn = params()
    ema = {name: jax.tree.map(jnp.copy, drawn) for name in ("ema", "ema0.5", "power0.1")}
    opt = make_optimizer(setup.recipe.optimizer, setup.recipe.train.steps).init(drawn)
    return TrainState(jnp.int32(0), drawn, ema, opt, jnp.int32(0), jnp.int32(0))


def _batch(number: int) -> Tree:
    rng = np.random.default_rng(number)
    return {
        "mean": rng.standard_normal((BATCH, *SHAPE)).astype(np.float16),
        "logvar": rng.uniform(-4, 0, (BATCH, *SHAPE)).astype(np.float16),
        "label": rng.integers(0, CLASSES, BATCH, dtype=np.int32),
        "epoch": rng.integers(0, 3, BATCH, dtype=np.int32),
        "index": rng.integers(0, 1000, BATCH, dtype=np.int32),
    }


KEY = jax.random.key(5)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _close(actual: Any, expected: Any, **tolerance: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), _numpy(actual), _numpy(expected)
    )


def _equal(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, _numpy(actual), _numpy(expected))


def _drawn(key: jax.Array, batch: Tree, drop: float = 0.3) -> tuple[NDArray[Any], ...]:
    """(data, noise, t, label), record by record."""

    def of(row: int, purpose: Purpose) -> jax.Array:
        folded = key
        for number in (purpose, batch["epoch"][row], batch["index"][row]):
            folded = jax.random.fold_in(folded, number)
        return folded

    def normal(purpose: Purpose, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.array(
            [jax.random.normal(of(row, purpose), shape) for row in range(BATCH)], np.float64
        )

    raw = batch["mean"] + np.exp(batch["logvar"].astype(np.float64) / 2) * normal(
        Purpose.POSTERIOR, SHAPE
    )
    time = 1 / (1 + np.exp(-(0.2 + 0.8 * normal(Purpose.TIME, ()))))
    uniform = np.array([jax.random.uniform(of(row, Purpose.LABEL_DROP)) for row in range(BATCH)])
    label = np.where(uniform < drop, CLASSES, batch["label"])
    return (raw - np.array(OFFSET)) * np.array(SCALE), normal(Purpose.NOISE, SHAPE), time, label


def _losses_and_gradient(
    p: Tree, data: Any, noise: Any, t: Any, label: Any
) -> tuple[NDArray[Any], Tree]:
    """Of the hidden layer that is to give data - noise; (n,), and the gradient of the mean."""
    at = t[:, None, None, None]
    x = (1 - at) * noise + at * data
    hidden = np.tanh(x @ p["w"] + (t[:, None] * p["u"] + p["e"][label])[:, None, None, :])
    error = hidden @ p["out"] + p["b"] - (data - noise)
    up = 2 * error / error.size
    inner = (up @ p["out"].T) * (1 - hidden**2)
    by_record = inner.sum(axis=(1, 2))
    e = np.zeros_like(p["e"])
    np.add.at(e, label, by_record)
    gradient = {
        "w": np.einsum("nhwc,nhwd->cd", x, inner),
        "u": t @ by_record,
        "e": e,
        "out": np.einsum("nhwd,nhwc->dc", hidden, up),
        "b": up.sum(axis=(0, 1, 2)),
    }
    return (error**2).mean(axis=(1, 2, 3)), gradient


def _norm(tree: Tree) -> float:
    return float(np.sqrt(sum((leaf**2).sum() for leaf in tree.values())))


def _reference(
    params: Tree, batches: list[Tree]
) -> tuple[list[dict[str, Any]], Tree, dict[str, Tree]]:
    """Metrics of each step, and parameters and averages after the last: clipped AdamW with a
    warm-up, in float64.
    """
    p = {name: leaf.astype(np.float64) for name, leaf in params.items()}
    first, second = ({name: np.zeros_like(leaf) for name, leaf in p.items()} for _ in range(2))
    ema, lines = {name: dict(p) for name in ("ema", "ema0.5", "power0.1")}, []
    for k, batch in enumerate(batches, start=1):
        drawn = _drawn(KEY, batch)
        losses, gradient = _losses_and_gradient(p, *drawn)
        norm, rate = _norm(gradient), 0.02 * k / 5
        before = p
        p = {}
        for name, g in gradient.items():
            g = g * min(1, 0.5 / norm)
            first[name], second[name] = (
                0.9 * first[name] + 0.1 * g,
                0.99 * second[name] + 0.01 * g**2,
            )
            adam = (first[name] / (1 - 0.9**k)) / (np.sqrt(second[name] / (1 - 0.99**k)) + 1e-8)
            p[name] = before[name] - rate * (adam + 0.1 * before[name])
        decays = {"ema": 0.9, "ema0.5": 0.5, "power0.1": (1 - 1 / k) ** (gamma_of_width(0.1) + 1)}
        ema = {
            name: {leaf: decays[name] * old[leaf] + (1 - decays[name]) * p[leaf] for leaf in p}
            for name, old in ema.items()
        }
        tenth = np.floor(drawn[2] * 10).astype(int)
        lines.append(
            {
                "loss": losses.mean(),
                "grad_norm": norm,
                "update_norm": _norm({name: p[name] - before[name] for name in p}),
                "param_norm": _norm(p),
                "learning_rate": rate,
                "finite": 1,
                "skipped": 0,
                "streak": 0,
                "time_loss": np.bincount(tenth, losses, minlength=10),
                "time_count": np.bincount(tenth, minlength=10),
            }
        )
    return lines, p, ema


@pytest.fixture(scope="module")
def plain() -> tuple[Setup, Any]:
    """The hidden layer and its step on one device."""
    setup = _setup(_hidden_layer())
    return setup, make_train_step(setup)


def test_steps_equal_those_written_out(plain: tuple[Setup, Any]):
    setup, step = plain
    state, batches = _state(setup), [_batch(k) for k in range(3)]
    lines, params, ema = _reference(_numpy(state.params), batches)
    assert min(line["grad_norm"] for line in lines) > 0.5, "nothing was clipped"
    for batch, line in zip(batches, lines, strict=True):
        state, metrics = step(state, batch, KEY)
        assert set(metrics) == set(line)
        for name, value in line.items():
            np.testing.assert_allclose(metrics[name], value, rtol=5e-6, atol=1e-6, err_msg=name)
        assert metrics["time_count"].sum() == BATCH
        assert metrics["time_loss"].sum() == pytest.approx(BATCH * float(metrics["loss"]), rel=1e-6)
    _close(state.params, params, rtol=1e-5, atol=1e-6)
    _close(state.ema, ema, rtol=1e-5, atol=1e-6)
    assert (int(state.step), int(state.skipped), int(state.streak)) == (3, 0, 0)
    assert {name: metrics[name].dtype for name in ("loss", "finite", "skipped", "streak")} == {
        "loss": jnp.float32,
        "finite": jnp.float32,
        "skipped": jnp.int32,
        "streak": jnp.int32,
    }


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_whole_batch(plain: tuple[Setup, Any], parts: int):
    setup, step = plain
    in_parts = make_train_step(_setup(_hidden_layer(), accumulate=parts))
    one, other = _state(setup), _state(setup)
    for number in range(3):
        one, expected = step(one, _batch(number), KEY)
        other, metrics = in_parts(other, _batch(number), KEY)
        _close(metrics, expected, rtol=2e-6, atol=1e-6)
    _close(other.params, one.params, rtol=2e-6, atol=1e-6)
    _close(other.ema, one.ema, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan, 6e4])
def test_an_update_that_is_not_finite_is_not_made(plain: tuple[Setup, Any], bad: float):
    """Bad steps among good ones change no bit of what the good ones make; they are counted, and
    those in a row.
    """
    setup, step = plain
    calm, rough = _state(setup), _state(setup)
    counts = []
    for number, good in enumerate([True, False, False, True, False, True]):
        batch = _batch(number)
        if good:
            calm, expected = step(calm, batch, KEY)
        else:
            batch["mean"][3, 1, 2, 0] = bad
            if np.isfinite(bad):
                batch["logvar"][:] = 6e4  # exp overflows
        rough, metrics = step(rough, batch, KEY)
        _equal((rough.params, rough.ema, rough.opt), (calm.params, calm.ema, calm.opt))
        counts.append((int(rough.step), int(rough.skipped), int(rough.streak)))
        assert (int(metrics["skipped"]), int(metrics["streak"])) == counts[-1][1:]
        assert float(metrics["finite"]) == good
        assert float(metrics["learning_rate"]) == pytest.approx(
            0.02 / 5 * (int(calm.step) + (not good))
        )
        if good:
            _equal({**metrics, "skipped": 0}, {**expected, "skipped": 0})
        else:
            assert not np.isfinite(metrics["loss"])
            assert float(metrics["update_norm"]) == 0
            assert np.isfinite(metrics["param_norm"])
    assert counts == [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 2, 0), (5, 3, 1), (6, 3, 0)]


def test_a_run_begins_with_its_averages_at_the_parameters():
    setup = _setup(_hidden_layer())
    state = init_state(setup, KEY)
    expected = setup.network.init(jax.random.fold_in(KEY, Purpose.INIT))
    _equal(state.params, expected)
    _equal(state.ema, dict.fromkeys(("ema", "ema0.5", "power0.1"), expected))
    assert (int(state.step), int(state.skipped), int(state.streak)) == (0, 0, 0)
    leaves = [*jax.tree.leaves(state.params), *jax.tree.leaves(state.ema)]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves), (
        "a buffer would be donated twice"
    )


def test_validation_sums_over_records_that_are_no_padding():
    setup, batch = _setup(_hidden_layer()), _batch(0)
    params, weight = _state(setup).params, np.ones(BATCH, np.float32)
    weight[-3:] = 0
    step = make_validation_step(setup)
    data, noise, time, label = _drawn(jax.random.fold_in(KEY, Purpose.VALIDATION), batch, drop=0.0)
    np.testing.assert_array_equal(label, batch["label"])
    losses, _ = _losses_and_gradient(_numpy(params), data, noise, time, label)
    tenth = np.floor(time * 10).astype(int)
    expected = {
        "loss": losses @ weight,
        "time_loss": np.bincount(tenth, losses * weight, minlength=10),
        "time_count": np.bincount(tenth, weight, minlength=10),
    }
    _close(step(params, batch, weight, KEY), expected, rtol=1e-5, atol=1e-6)
    _equal(step(params, batch, weight, KEY), step(params, batch, weight, KEY))


MESHES = {"data": (1, 1), "fsdp": (8, 1), "both, in parts": (4, 2)}  # fsdp, parts


@pytest.fixture(scope="module")
def alone() -> tuple[TrainState, list[dict[str, Any]]]:
    """Three steps of a DiT on one device."""
    return _three_steps(make_mesh(jax.devices()[:1]), 1)


def _three_steps(mesh: Any, parts: int) -> tuple[TrainState, list[dict[str, Any]]]:
    recipe = make_recipe(CONTENT)
    setup = _setup(
        make_network(recipe.model, SHAPE, CLASSES, constrain_batch(mesh)), accumulate=parts
    )
    state = _state(setup, 0.1)
    places = state_shardings(mesh, state)
    state, key = jax.device_put(state, places), jax.device_put(KEY, replicated(mesh))
    step, lines = make_train_step(setup, mesh), []
    quick = {"xla_backend_optimization_level": 0}
    for number in range(3):
        batch = jax.device_put(_batch(number), batch_sharding(mesh))
        # compiled for these places: were the state elsewhere after a step, the next would fail
        if number == 0:
            step = step.lower(state, batch, key).compile(quick)
        state, metrics = step(state, batch, key)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
        assert all(value.is_fully_replicated for value in metrics.values())
        lines.append(_numpy(metrics))
    return state, lines


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_compute_what_one_does(
    alone: tuple[TrainState, list[dict[str, Any]]], name: str
):
    fsdp, parts = MESHES[name]
    state, lines = _three_steps(make_mesh(fsdp=fsdp), parts)
    cut = [
        leaf
        for leaf in jax.tree.leaves((state.params, state.ema, state.opt))
        if not leaf.is_fully_replicated
    ]
    # kernels of a block: parameters, 3 averages, 2 moments
    assert len(cut) == (0 if fsdp == 1 else 5 * 6)
    _close(lines, alone[1], rtol=2e-6, atol=1e-6)
    _close(_without_bias_of_keys(state), _without_bias_of_keys(alone[0]), rtol=1e-5, atol=2e-5)


def _without_bias_of_keys(state: TrainState) -> list[Any]:
    """Parameters and averages; but softmax does not see a shift of all keys, so that gradient is
    rounding, and Adam makes it as large as any other."""
    trees = [jax.tree.map(np.array, tree) for tree in (state.params, *state.ema.values())]
    for tree in trees:
        tree["blocks"][0]["qkv"]["bias"][16:32] = 0
    return trees
