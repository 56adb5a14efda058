"""The DiT against the papers, an independent NumPy forward pass, its initial state, and its own
variants.
"""

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain import model
from flowtrain.model import (
    Network,
    count_parameters,
    forward_macs,
    layer_norm,
    make_network,
    rms_norm,
    sincos_positions,
    stack_blocks,
    time_features,
    unstack_blocks,
)
from schemas.config import ModelConfig

IMAGENET = (32, 32, 4)
SMALL = {"depth": 2, "width": 16, "heads": 2, "patch": 2, "mlp_ratio": 3.0}


def _config(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(values)


# Parameters of the networks without learned variances, which SiT (Ma et al. 2024, table 1) prints
# at patch 2; the larger patches differ by the first and last layer alone. GFLOPs of DiT (Peebles &
# Xie 2023, table 4), which are MACs.
@pytest.mark.parametrize(
    ("size", "millions", "gmacs"),
    [
        ("S", 32.9, {8: 0.36, 4: 1.41, 2: 6.06}),
        ("B", 130.3, {8: 1.42, 4: 5.56, 2: 23.01}),
        ("L", 457.8, {8: 5.01, 4: 19.70, 2: 80.71}),
        ("XL", 674.8, {8: 7.39, 4: 29.05, 2: 118.64}),
    ],
)
def test_sizes_of_the_papers(size: str, millions: float, gmacs: dict[int, float]):
    config = _config(size=size)
    parameters = make_network(config, IMAGENET, 1000).abstract
    assert count_parameters(parameters) / 1e6 == pytest.approx(millions, abs=0.06)
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}
    for patch, expected in gmacs.items():
        # The table counts the last layer with twice the channels, and rounds to a hundredth.
        learned_variance = (32 // patch) ** 2 * patch**2 * 4 * config.width
        found = (
            forward_macs(config.model_copy(update={"patch": patch}), IMAGENET) + learned_variance
        )
        assert found / 1e9 == pytest.approx(expected, rel=2e-3, abs=0.01)


@pytest.mark.parametrize("patch", [4, 8])
def test_a_larger_patch_changes_the_first_and_the_last_layer_alone(patch: int):
    by_patch = [
        count_parameters(make_network(_config(**SMALL | {"patch": p}), IMAGENET, 1000).abstract)
        for p in (2, patch)
    ]
    more = patch**2 * 4 - 2**2 * 4  # inputs of the first layer, outputs of the last
    assert by_patch[1] - by_patch[0] == more * 16 + more * (16 + 1)


@pytest.mark.parametrize(
    "changes", [{}, {"scan": True}, {"qk_norm": True}, {"time_conditioning": False}]
)
def test_parameters_are_those_that_a_count_by_hand_gives(changes: dict[str, bool]):
    d, hidden, pixels = 16, 48, 16
    block = (
        (d * 3 * d + 3 * d)
        + (d * d + d)
        + (d * hidden + hidden)
        + (hidden * d + d)
        + (d * 6 * d + 6 * d)
    )
    block += 2 * (d // 2) if changes.get("qk_norm") else 0
    time = (256 * d + d) + (d * d + d) if changes.get("time_conditioning", True) else 0
    ends = (pixels * d + d) + 6 * d + (d * 2 * d + 2 * d) + (d * pixels + pixels)
    network = make_network(_config(**SMALL, **changes), (4, 6, 4), 5)
    assert count_parameters(network.abstract) == 2 * block + time + ends


def _random_params(abstract: Any, seed: int = 0) -> Any:
    """Every weight and bias away from zero, or a wrong order of modulation terms would go
    unseen.
    """
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(abstract)
    return tree.unflatten(
        [rng.standard_normal(a.shape).astype(np.float32) / math.sqrt(a.shape[0]) for a in leaves]
    )


def _inputs(shape: tuple[int, int, int], classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, t with both ends, and labels with the null class."""
    x = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
    return jnp.asarray(x), jnp.array([0.0, 0.37, 1.0]), jnp.array([0, 3, classes], jnp.int32)


def _reference(
    p: Any, config: ModelConfig, x: np.ndarray, t: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """DiT in float64 NumPy, one image at a time, patches cut by loops."""

    def linear(a: np.ndarray, w: Any) -> np.ndarray:
        return a @ np.float64(w["kernel"]) + np.float64(w["bias"])

    def norm(a: np.ndarray) -> np.ndarray:
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

    def rms(a: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * scale

    def silu(a: np.ndarray) -> np.ndarray:
        return a / (1 + np.exp(-a))

    def gelu(a: np.ndarray) -> np.ndarray:
        return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))

    height, width, channels = x.shape[1:]
    s, d, head = config.patch, config.width, config.width // config.heads
    cuts = [(i, j) for i in range(0, height, s) for j in range(0, width, s)]
    angles = [10000 ** (-k / (d / 4)) for k in range(d // 4)]
    out = np.zeros(x.shape)
    for n in range(len(x)):
        features = [t[n] * config.time_scale * 10000 ** (-k / 128) for k in range(128)]
        time = np.concatenate([np.cos(features), np.sin(features)])
        condition = silu(
            linear(silu(linear(time, p["time_in"])), p["time_out"])
            + p["label_embed"]["embedding"][label[n]]
        )
        tokens = []
        for i, j in cuts:
            row, column = [i // s * a for a in angles], [j // s * a for a in angles]
            position = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)])
            tokens.append(
                linear(x[n, i : i + s, j : j + s].reshape(-1), p["patch_embed"]) + position
            )
        h = np.array(tokens)
        for number in range(config.depth):
            b = p["blocks"][number]
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(
                linear(condition, b["modulation"]), 6
            )
            q, k, v = np.split(linear(norm(h) * (1 + scale_a) + shift_a, b["qkv"]), 3, axis=-1)
            heads = []
            for c in range(0, d, head):
                query, key = q[:, c : c + head], k[:, c : c + head]
                if config.qk_norm:
                    query, key = rms(query, b["q_scale"]), rms(key, b["k_scale"])
                logits = query @ key.T / math.sqrt(head)
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, c : c + head])
            h = h + gate_a * linear(np.concatenate(heads, -1), b["attention_out"])
            h = h + gate_m * linear(
                gelu(linear(norm(h) * (1 + scale_m) + shift_m, b["mlp_in"])), b["mlp_out"]
            )
        shift, scale = np.split(linear(condition, p["final_modulation"]), 2)
        patches = linear(norm(h) * (1 + scale) + shift, p["final"])
        for patch, (i, j) in zip(patches, cuts, strict=True):
            out[n, i : i + s, j : j + s] = patch.reshape(s, s, channels)
    return out


@pytest.mark.parametrize("qk_norm", [False, True])
def test_forward_pass_equals_an_independent_one(qk_norm: bool):
    config = _config(**SMALL, qk_norm=qk_norm)
    shape, classes = (4, 6, 3), 5  # not square, so that rows and columns cannot be exchanged
    network = make_network(config, shape, classes)
    params, inputs = _random_params(network.abstract), _inputs(shape, classes)
    ours = jax.jit(network.predict)(params, *inputs)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(
        ours, _reference(params, config, *map(np.asarray, inputs)), rtol=0, atol=3e-5
    )


# Variants that must not change what is computed


def _values_and_gradients(network: Network, params: Any) -> tuple[jax.Array, Any]:
    """Of a loss that every output enters with a weight of its own."""
    inputs = _inputs((4, 6, 3), 5)
    weight = jax.random.normal(jax.random.key(3), inputs[0].shape)
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(weight * network.predict(p, *inputs))))
    return loss(params)


def _assert_close(found: Any, expected: Any) -> None:
    """Leaf by leaf, to 1e-5 of the largest value."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=str(path))


@pytest.fixture(scope="module")
def plain() -> tuple[Network, Any, tuple[jax.Array, Any]]:
    """Unrolled, without rematerialisation; qk-norm, so that vectors are stacked too."""
    network = make_network(_config(**SMALL, qk_norm=True), (4, 6, 3), 5)
    params = _random_params(network.abstract)
    return network, params, _values_and_gradients(network, params)


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_over_stacked_blocks_is_the_unrolled_network(plain: Any, remat: bool):
    _, params, (loss, gradient) = plain
    scanned = make_network(_config(**SMALL, qk_norm=True, scan=True, remat=remat), (4, 6, 3), 5)
    stacked = stack_blocks(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, scanned.abstract)
    found, slope = _values_and_gradients(scanned, stacked)
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    _assert_close(unstack_blocks(slope, 2), gradient)


def test_rematerialisation_changes_neither_values_nor_gradients(plain: Any):
    _, params, (loss, gradient) = plain
    found, slope = _values_and_gradients(
        make_network(_config(**SMALL, qk_norm=True, remat=True), (4, 6, 3), 5), params
    )
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    _assert_close(slope, gradient)


def test_rematerialisation_keeps_less():
    """What a gradient keeps of the forward pass, in bytes: with it, the input of each block."""

    def kept(**changes: bool) -> int:
        network = make_network(_config(**(SMALL | {"depth": 4}), **changes), (4, 4, 4), 5)
        inputs = _inputs((4, 4, 4), 5)
        _, pull = jax.eval_shape(
            lambda p: jax.vjp(lambda q: network.predict(q, *inputs), p), network.abstract
        )
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(pull)) - count_parameters(
            network.abstract
        )

    for scan in (False, True):
        assert kept(remat=True, scan=scan) < 0.5 * kept(scan=scan)


def test_stacking_has_an_inverse(plain: Any):
    _, params, _ = plain
    back = unstack_blocks(stack_blocks(params), 2)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_activations_are_placed_by_the_caller():
    """Whatever is constrained is (n, ...): the tokens before the blocks and after each, and the
    condition.
    """
    seen: list[tuple[int, ...]] = []

    def constrain(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return x

    network = make_network(_config(**SMALL), (4, 4, 4), 5, constrain)
    jax.eval_shape(network.predict, network.abstract, *_inputs((4, 4, 4), 5))
    assert sorted(seen) == [(3, 4, 16)] * 3 + [(3, 16)]


# The initial state


def test_initial_prediction_is_zero_and_init_depends_on_the_key():
    network = make_network(_config(size="debug"), (4, 4, 4), 3)
    init = jax.jit(network.init)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    scanned = jax.jit(make_network(_config(size="debug", scan=True), (4, 4, 4), 3).init)(
        jax.random.key(0)
    )
    # the switch changes nothing else
    jax.tree.map(np.testing.assert_array_equal, scanned, stack_blocks(params))
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 4))
    prediction = jax.jit(network.predict)(params, x, jnp.zeros(2), jnp.zeros(2, jnp.int32))
    assert not prediction.any()  # adaLN-Zero: the final layer starts at zero
    for block in params["blocks"].values():
        assert not block["modulation"]["kernel"].any()
        assert not block["modulation"]["bias"].any()
    # Xavier over the fused matrix, as DiT initialises it
    kernel = params["blocks"][0]["qkv"]["kernel"]
    assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / (32 + 96)), rel=0.02)
    assert (kernel != other["blocks"][0]["qkv"]["kernel"]).all()
    assert (kernel != params["blocks"][1]["qkv"]["kernel"]).all()


# Numbers


def test_layer_norm_survives_a_large_mean():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32))
    # 3000 costs 2e-4 of x itself
    np.testing.assert_allclose(layer_norm(x + 3000), layer_norm(x), atol=3e-3)


def test_rms_norm_is_computed_in_float32_and_keeps_the_type():
    x = (np.random.default_rng(0).standard_normal((2, 3, 2, 64)) * 100).astype(np.float32)
    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    expected = x / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(scale)), expected, rtol=2e-6)
    half = rms_norm(jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-7, atol=1e-6)


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    shape, table = (4, 4, 4), {"depth": 2, "width": 32, "heads": 2}
    x = jax.random.normal(jax.random.key(0), (4, *shape))
    t, label = jnp.linspace(0, 1, 4), jnp.arange(4)
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        network = make_network(_config(**table, dtype=dtype), shape, 3)
        outputs[dtype] = jax.jit(network.predict)(_random_params(network.abstract), x, t, label)
    error = (
        np.abs(outputs["bfloat16"] - outputs["float32"]).max() / np.abs(outputs["float32"]).max()
    )
    assert outputs["bfloat16"].dtype == jnp.float32
    assert 1e-5 < error < 3e-2
    scanned = make_network(_config(**table, dtype="bfloat16", scan=True, qk_norm=True), shape, 3)
    assert jax.eval_shape(scanned.predict, scanned.abstract, x, t, label).dtype == jnp.float32


# How time enters


@pytest.mark.parametrize(
    ("convention", "time"),
    [
        ({}, lambda t: 1000 * t),
        ({"time_scale": 1.0}, lambda t: t),  # SiT
        ({"time_scale": 1.0, "time_direction": "to_noise"}, lambda t: 1 - t),
        ({"time_scale": 1.0, "time_offset": 0.25}, lambda t: t + 0.25),
        (
            {"time_scale": 2.0, "time_direction": "to_noise", "time_offset": 3.0},
            lambda t: 2 * (1 - t) + 3,
        ),
        # DDPM's timesteps: level k, t = 1 - k / 1000, is number k - 1.
        ({"time_direction": "to_noise", "time_offset": -1.0}, lambda t: 1000 * (1 - t) - 1),
        ({"time_integer": True}, lambda t: np.rint(1000 * t)),
    ],
)
@pytest.mark.parametrize(("frequencies", "span"), [("half", 128), ("half_minus_one", 127)])
def test_time_enters_in_the_convention_asked_for(
    convention: Any, time: Any, frequencies: str, span: int
):
    t = np.array([0.0, 0.0331, 0.5, 0.8497], np.float32)
    found = time_features(
        jnp.asarray(t), _config(**SMALL, **convention, time_frequencies=frequencies)
    )
    angle = time(np.float64(t))[:, None] * 10000.0 ** (-np.arange(128) / span)
    assert found.shape == (4, 256)
    np.testing.assert_allclose(
        found, np.concatenate([np.cos(angle), np.sin(angle)], axis=1), atol=2e-4
    )


def test_every_timestep_of_ddpm_is_a_whole_number():
    """float32 has 1 - k / 1000 to 3e-8, so the timestep to 3e-5: rounded, it is exact, as tables of
    others have it.
    """
    config = _config(**SMALL, time_direction="to_noise", time_offset=-1.0, time_integer=True)
    features = time_features(1 - jnp.arange(1, 1001) / 1000, config)
    np.testing.assert_array_equal(
        features, time_features(1 - jnp.arange(1, 1001) / 1000 + 2e-8, config)
    )
    frequency = np.exp(-math.log(10000.0) * np.arange(128) / 128).astype(np.float32)
    angle = np.arange(1000, dtype=np.float32)[:, None] * frequency
    np.testing.assert_allclose(features[:, :128], np.cos(angle), atol=3e-7)


def test_without_time_conditioning_t_is_ignored_and_labels_are_not():
    network = make_network(_config(**SMALL, time_conditioning=False), (4, 4, 4), 5)
    assert not {"time_in", "time_out"} & network.abstract.keys()
    predict, params = jax.jit(network.predict), _random_params(network.abstract)
    x, t, label = _inputs((4, 4, 4), 5)
    out = predict(params, x, t, label)
    np.testing.assert_array_equal(predict(params, x, 1 - t, label), out)
    assert (predict(params, x, t, label[::-1]) != out)[0].all()
    told = make_network(_config(**SMALL), (4, 4, 4), 5)
    params = _random_params(told.abstract)
    assert (
        jax.jit(told.predict)(params, x, 1 - t, label) != jax.jit(told.predict)(params, x, t, label)
    )[0].all()


def test_positions_are_distinct_and_bounded():
    positions = sincos_positions(4, 6, 32)
    assert positions.shape == (24, 32)
    assert np.abs(positions).max() <= 1
    assert len(np.unique(positions.round(4), axis=0)) == 24


def test_the_network_and_its_loss_need_only_jax_flax_optax_and_numpy():
    """They must run on a bare accelerator machine; the step too, which takes `schemas.errors` from
    beside it.
    """
    program = """
import sys
blocked = "pydantic grain orbax array_record tensorflow_datasets click tqdm tensorboardX".split()
blocked.append("schemas")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from collections import namedtuple
import jax, jax.numpy as jnp
from flowtrain import model, optim
from flowtrain.flow import objective, path
from flowtrain.records import counter, latents
from flowtrain.state import ema, train_state
blocked.remove("schemas")
from flowtrain import step
values = dict(depth=1, width=8, heads=2, patch=2, mlp_ratio=4.0, dtype="bfloat16")
values |= dict(qk_norm=True, remat=True)
values |= dict(time_conditioning=True, time_direction="to_data", time_scale=1000.0)
values |= dict(time_offset=0.0, time_integer=False)
for scan in (False, True):
    table = dict(values, time_frequencies="half", scan=scan)
    config = namedtuple("Config", table)(**table)
    network = model.make_network(config, (4, 4, 4), 10)
    n = [jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in ((4, 4, 4), ())]
    label = jax.ShapeDtypeStruct((2,), jnp.int32)
    gradient = jax.grad(lambda p, *x: network.predict(p, *x).sum())
    assert jax.eval_shape(gradient, network.abstract, *n, label)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_latent_that_patches_cannot_tile_is_refused():
    with pytest.raises(ValueError, match="5x4 is not divisible by patch 2"):
        make_network(_config(size="debug"), (5, 4, 4), 3)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "kernel"),
    [
        ("9.0", "bfloat16", 64, "cudnn"),
        ("8.0", "bfloat16", 128, "cudnn"),
        ("9.0", "float32", 64, None),
        ("9.0", "bfloat16", 4, None),  # the quickstart's heads are wider
        ("9.0", "bfloat16", 256, None),
        ("7.5", "bfloat16", 64, None),
        ("gfx942", "bfloat16", 64, None),  # AMD
        (None, "bfloat16", 64, None),  # a CPU
    ],
)
def test_the_fused_attention_is_asked_for_only_where_it_exists(
    monkeypatch: pytest.MonkeyPatch,
    capability: str | None,
    dtype: str,
    width: int,
    kernel: str | None,
):
    device = (
        SimpleNamespace() if capability is None else SimpleNamespace(compute_capability=capability)
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert model._attention_kernel(dtype, width) == kernel
