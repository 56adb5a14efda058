"""The DiT against the paper's table, an independent NumPy forward pass, and its own initial state."""

import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.model import count_parameters, forward_macs, layer_norm, make_network, sincos_positions, time_features
from schemas.config import ModelConfig

IMAGENET = (32, 32, 4)


@pytest.mark.parametrize(
    ("size", "millions", "gmacs"), [("S", 32.9, 6.06), ("B", 130.3, 23.01), ("L", 457.8, 80.71), ("XL", 674.8, 118.6)]
)
def test_sizes_of_the_dit_paper(size: str, millions: float, gmacs: float):
    config = ModelConfig.model_validate({"size": size})
    parameters = make_network(config, IMAGENET, 1000).abstract
    assert count_parameters(parameters) / 1e6 == pytest.approx(millions, abs=0.06)
    assert forward_macs(config, IMAGENET) / 1e9 == pytest.approx(gmacs, rel=2e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}


def _random_params(abstract: Any, seed: int = 0) -> Any:
    """Every weight and bias away from zero, or a wrong order of modulation terms would go unseen."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(abstract)
    return tree.unflatten([rng.standard_normal(a.shape).astype(np.float32) / math.sqrt(a.shape[0]) for a in leaves])


def _reference(p: Any, config: ModelConfig, x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
    """DiT in float64 NumPy, one image at a time, patches cut by loops."""

    def linear(a: np.ndarray, w: Any) -> np.ndarray:
        return a @ np.float64(w["kernel"]) + np.float64(w["bias"])

    def norm(a: np.ndarray) -> np.ndarray:
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

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
            linear(silu(linear(time, p["time_in"])), p["time_out"]) + p["label_embed"]["embedding"][label[n]]
        )
        tokens = []
        for i, j in cuts:
            row, column = [i // s * a for a in angles], [j // s * a for a in angles]
            position = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)])
            tokens.append(linear(x[n, i : i + s, j : j + s].reshape(-1), p["patch_embed"]) + position)
        h = np.array(tokens)
        for number in range(config.depth):
            b = p["blocks"][number]
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(linear(condition, b["modulation"]), 6)
            q, k, v = np.split(linear(norm(h) * (1 + scale_a) + shift_a, b["qkv"]), 3, axis=-1)
            heads = []
            for c in range(0, d, head):
                logits = q[:, c : c + head] @ k[:, c : c + head].T / math.sqrt(head)
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, c : c + head])
            h = h + gate_a * linear(np.concatenate(heads, -1), b["attention_out"])
            h = h + gate_m * linear(gelu(linear(norm(h) * (1 + scale_m) + shift_m, b["mlp_in"])), b["mlp_out"])
        shift, scale = np.split(linear(condition, p["final_modulation"]), 2)
        patches = linear(norm(h) * (1 + scale) + shift, p["final"])
        for patch, (i, j) in zip(patches, cuts, strict=True):
            out[n, i : i + s, j : j + s] = patch.reshape(s, s, channels)
    return out


def test_forward_pass_equals_an_independent_one():
    config = ModelConfig.model_validate({"depth": 2, "width": 16, "heads": 2, "patch": 2, "mlp_ratio": 3.0})
    shape, classes = (4, 6, 3), 5  # not square, so that rows and columns cannot be exchanged
    network = make_network(config, shape, classes)
    params = _random_params(network.abstract)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, *shape)).astype(np.float32)
    t, label = np.array([0.0, 0.37, 1.0], np.float32), np.array([0, 3, classes], np.int32)
    ours = jax.jit(network.velocity)(params, x, t, label)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, _reference(params, config, x, t, label), rtol=0, atol=3e-5)


def test_initial_velocity_is_zero_and_init_depends_on_the_key():
    network = make_network(ModelConfig.model_validate({"size": "debug"}), (4, 4, 4), 3)
    init = jax.jit(network.init)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 4))
    velocity = jax.jit(network.velocity)(params, x, jnp.zeros(2), jnp.zeros(2, jnp.int32))
    assert not velocity.any()  # adaLN-Zero: the final layer starts at zero
    for block in params["blocks"].values():
        assert not block["modulation"]["kernel"].any()
        assert not block["modulation"]["bias"].any()
    kernel = params["blocks"][0]["qkv"]["kernel"]  # Xavier over the fused matrix, as DiT initialises it
    assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / (32 + 96)), rel=0.02)
    assert (kernel != other["blocks"][0]["qkv"]["kernel"]).all()


def test_layer_norm_survives_a_large_mean():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    np.testing.assert_allclose(layer_norm(x + 3000), layer_norm(x), atol=3e-3)  # 3000 costs 2e-4 of x itself


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    shape, table = (4, 4, 4), {"depth": 2, "width": 32, "heads": 2}
    x = jax.random.normal(jax.random.key(0), (4, *shape))
    t, label = jnp.linspace(0, 1, 4), jnp.arange(4)
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        network = make_network(ModelConfig.model_validate(table | {"dtype": dtype}), shape, 3)
        outputs[dtype] = jax.jit(network.velocity)(_random_params(network.abstract), x, t, label)
    error = np.abs(outputs["bfloat16"] - outputs["float32"]).max() / np.abs(outputs["float32"]).max()
    assert outputs["bfloat16"].dtype == jnp.float32
    assert 1e-5 < error < 3e-2


def test_time_frequencies_divide_by_half():
    features = np.asarray(time_features(jnp.array([0.5]), 1000.0))[0]
    assert features[:128].argmax() == 127  # cosines first, slowest last
    assert features[127] == pytest.approx(math.cos(500 * 10000 ** (-127 / 128)), abs=1e-5)
    assert features[255] == pytest.approx(math.sin(500 * 10000 ** (-127 / 128)), abs=1e-5)


def test_positions_are_distinct_and_bounded():
    positions = sincos_positions(4, 6, 32)
    assert positions.shape == (24, 32)
    assert np.abs(positions).max() <= 1
    assert len(np.unique(positions.round(4), axis=0)) == 24


def test_the_network_and_its_loss_need_only_jax_flax_optax_and_numpy():
    """They must run on a bare accelerator machine."""
    program = """
import sys
blocked = "pydantic grain orbax array_record tensorflow_datasets click tqdm tensorboardX schemas"
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked.split():
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from types import SimpleNamespace
from flowtrain import counter, ema, latents, model, objective, optim, path, state
config = SimpleNamespace(depth=1, width=8, heads=2, patch=2, mlp_ratio=4.0, dtype="bfloat16", time_scale=1000.0)
assert model.count_parameters(model.make_network(config, (4, 4, 4), 10).abstract) > 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_latent_that_patches_cannot_tile_is_refused():
    with pytest.raises(ValueError, match="5x4 is not divisible by patch 2"):
        make_network(ModelConfig.model_validate({"size": "debug"}), (5, 4, 4), 3)
