"""The Diffusion Transformer with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748), as a velocity network.

Needs jax, flax and numpy only. Parameters are float32; `config.dtype` is the dtype of matrix products. Norms,
modulation, softmax and the embedding of t stay in float32.

Letters in shapes: n batch, h w c latent height, width, channels, p patch, T = (h/p)(w/p) tokens, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if TYPE_CHECKING:
    from schemas.config import ModelConfig

Shape = tuple[int, int, int]
Params = Any  # nested dict of float32 arrays
Velocity = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]

FREQUENCIES = 256  # of the sin-cos embedding of t
NORM_EPSILON = 1e-6
_xavier = nnx.initializers.xavier_uniform()
_normal = nnx.initializers.normal(0.02)
_zeros = nnx.initializers.zeros_init()


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed 2-D sin-cos position embedding, (rows * columns, width) float32, tokens in row-major order.

    The first half of the channels encodes the column and the second the row, each as sin then cos of
    position * 10000^(-k / (width / 4)): the convention of MAE and DiT, so that their weights fit.
    """

    def encode(position: np.ndarray) -> np.ndarray:
        frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
        angle = position.reshape(-1, 1) * frequency.reshape(1, -1)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, column = np.meshgrid(np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing="ij")
    return np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)


def time_features(t: jax.Array, time_scale: float) -> jax.Array:
    """cos then sin of t * time_scale * 10000^(-k / half), k < half = 128: (n,) -> (n, 256) float32.

    DiT and SiT divide by `half`; diffusers divides by `half - 1` and is not compatible.
    """
    half = FREQUENCIES // 2
    frequency = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * time_scale * frequency[None, :]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def layer_norm(x: jax.Array) -> jax.Array:
    """Zero mean and unit variance over the last axis, in float32, two passes (no cancellation), no affine."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPSILON)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """adaLN: normalise x (n, T, D), then scale and shift by (n, D) each; float32."""
    return layer_norm(x) * (1 + scale[:, None, :]) + shift[:, None, :]


def _linear(fan_in: int, fan_out: int, dtype: Any, rngs: nnx.Rngs, init: Any = _xavier) -> nnx.Linear:
    return nnx.Linear(fan_in, fan_out, dtype=dtype, kernel_init=init, rngs=rngs)


class Block(nnx.Module):
    """Attention and MLP, both modulated and gated by the condition. Identity at initialisation (adaLN-Zero)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, hidden, dtype = config.width, int(config.width * config.mlp_ratio), jnp.dtype(config.dtype)
        self.heads, self.dtype = config.heads, dtype
        self.qkv = _linear(width, 3 * width, dtype, rngs)  # q, k, v in this order, as in timm and DiT
        self.attention_out = _linear(width, width, dtype, rngs)
        self.mlp_in = _linear(width, hidden, dtype, rngs)
        self.mlp_out = _linear(hidden, width, dtype, rngs)
        self.modulation = _linear(width, 6 * width, dtype, rngs, _zeros)

    def _attention(self, x: jax.Array) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        return self.attention_out(jax.nn.dot_product_attention(q, k, v).reshape(n, tokens, width))

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x (n, T, D) in `dtype`, condition (n, D) after SiLU -> (n, T, D) in `dtype`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            self.modulation(condition).astype(jnp.float32), 6, axis=-1
        )
        update = self._attention(modulate(x, shift_a, scale_a).astype(self.dtype))
        x = (x + gate_a[:, None, :] * update).astype(self.dtype)
        update = self.mlp_out(jax.nn.gelu(self.mlp_in(modulate(x, shift_m, scale_m).astype(self.dtype))))
        return (x + gate_m[:, None, :] * update).astype(self.dtype)


class DiT(nnx.Module):
    """Velocity network: latent, time and label in, velocity out.

    Raises:
        ValueError: the latent's height or width is not divisible by the patch size.
    """

    def __init__(self, config: ModelConfig, latent_shape: Shape, num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = latent_shape
        if height % config.patch or width % config.patch:
            raise ValueError(f"latent {height}x{width} is not divisible by patch {config.patch}")
        dtype = jnp.dtype(config.dtype)
        self.patch, self.dtype, self.time_scale = config.patch, dtype, config.time_scale
        pixels = config.patch**2 * channels
        self.patch_embed = _linear(pixels, config.width, dtype, rngs)
        self.time_in = _linear(FREQUENCIES, config.width, jnp.float32, rngs, _normal)
        self.time_out = _linear(config.width, config.width, jnp.float32, rngs, _normal)
        # One row more than classes: the last is the learned null class of classifier-free guidance.
        self.label_embed = nnx.Embed(num_classes + 1, config.width, embedding_init=_normal, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.final_modulation = _linear(config.width, 2 * config.width, dtype, rngs, _zeros)
        self.final = _linear(config.width, pixels, dtype, rngs, _zeros)

    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """Velocity at x.

        Args:
            x: (n, h, w, c) float32, latent in model scale.
            t: (n,) float32 in [0, 1]; 0 is noise and 1 is data.
            label: (n,) int32 in [0, num_classes]; num_classes is the null class.

        Returns:
            (n, h, w, c) float32.
        """
        n, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        patches = x.reshape(n, rows, self.patch, columns, self.patch, channels)
        tokens = self.patch_embed(patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, -1))
        tokens = tokens + sincos_positions(rows, columns, tokens.shape[-1])[None].astype(self.dtype)

        time = self.time_out(jax.nn.silu(self.time_in(time_features(t, self.time_scale))))
        condition = jax.nn.silu(time + self.label_embed(label)).astype(self.dtype)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = jnp.split(self.final_modulation(condition).astype(jnp.float32), 2, axis=-1)
        patches = self.final(modulate(tokens, shift, scale).astype(self.dtype)).astype(jnp.float32)

        patches = patches.reshape(n, rows, columns, self.patch, self.patch, channels)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, height, width, channels)


class Network(NamedTuple):
    """A DiT taken apart into pure functions over a nested dict of parameters."""

    init: Callable[[jax.Array], Params]  # key -> parameters; jit it
    velocity: Velocity  # (params, x, t, label) -> velocity, shapes as `DiT.__call__`
    abstract: Params  # the parameters as ShapeDtypeStructs


def make_network(config: ModelConfig, latent_shape: Shape, num_classes: int) -> Network:
    """Split the module once; after this, plain `jax.jit` over dicts (nnx.jit costs more dispatch a step)."""

    def build(key: jax.Array) -> DiT:
        return DiT(config, latent_shape, num_classes, rngs=nnx.Rngs(key))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(build(key))[1])

    skeleton, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def velocity(params: Params, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(skeleton, filled)(x, t, label)

    return Network(init, velocity, jax.eval_shape(init, jax.random.key(0)))


def count_parameters(params: Params) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def forward_macs(config: ModelConfig, latent_shape: Shape) -> int:
    """Multiply-accumulates of one forward pass of one image; FLOPs are twice that, a training step three times those.

    By formula, since XLA's cost analysis counts a loop body once:
    depth (12 T D^2 + 2 T^2 D + 6 D^2) + 2 T p^2 c D + 256 D + 3 D^2, with 12 = 4 + 2 mlp_ratio.
    """
    height, width, channels = latent_shape
    tokens, d = (height // config.patch) * (width // config.patch), config.width
    hidden = int(d * config.mlp_ratio)
    block = tokens * (4 * d * d + 2 * d * hidden) + 2 * tokens * tokens * d + 6 * d * d
    return config.depth * block + 2 * tokens * config.patch**2 * channels * d + FREQUENCIES * d + 3 * d * d
