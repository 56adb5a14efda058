"""The Diffusion Transformer with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).

Needs jax, flax, numpy and jaxtyping only. Parameters are float32; `config.dtype` is the dtype of
matrix products. Norms, modulation, softmax and the embedding of t stay in float32.

Letters in shapes: n batch, h w c latent height, width, channels, p patch, T = (h/p)(w/p) tokens, D
width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from flowtrain.shapes import Labels, Latents, Times

if TYPE_CHECKING:
    from schemas.config import ModelConfig

Shape = tuple[int, int, int]
Params = Any  # nested dict of float32 arrays
Predict = Callable[[Params, Latents, Times, Labels], Latents]
# says where activations (n, ...) live; the identity on one device
Constrain = Callable[[jax.Array], jax.Array]

FREQUENCIES = 256  # of the sin-cos embedding of t
NORM_EPSILON = 1e-6
_xavier = nnx.initializers.xavier_uniform()
_normal = nnx.initializers.normal(0.02)
_zeros = nnx.initializers.zeros_init()


def sincos_positions(
    rows: int, columns: int, width: int
) -> Float32[np.ndarray, "{rows*columns} {width}"]:
    """Fixed 2-D sin-cos positions, (rows * columns, width) float32, tokens row by row.

    The first half of the channels encodes the column and the second the row, each as sin then cos
    of position * 10000^(-k / (width / 4)): the convention of MAE and DiT, so that their weights
    fit.
    """

    def encode(position: np.ndarray) -> np.ndarray:
        frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
        angle = position.reshape(-1, 1) * frequency.reshape(1, -1)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, column = np.meshgrid(
        np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing="ij"
    )
    return np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)


# What k is divided by in the exponent of the frequencies, for half of them cosines.
_FREQUENCY_SPAN: dict[str, Callable[[int], int]] = {
    "half": lambda half: half,
    "half_minus_one": lambda half: half - 1,
}


def time_features(t: Times, config: ModelConfig) -> Float32[Array, "n 256"]:
    """cos then sin of time * 10000^(-k / span), k < 128: t (n,) in [0, 1] -> (n, 256) float32.

    `ModelConfig` says what the network's time is and what the span. DiT and SiT divide by half of
    the number of frequencies, diffusers by one less; confusing them is an error of 0.3 where time
    reaches 1000.
    """
    time = t.astype(jnp.float32)
    time = (
        1 - time if config.time_direction == "to_noise" else time
    ) * config.time_scale + config.time_offset
    time = jnp.round(time) if config.time_integer else time
    half = FREQUENCIES // 2
    span = _FREQUENCY_SPAN[config.time_frequencies](half)
    frequency = np.exp(-math.log(10000.0) * np.arange(half) / span).astype(np.float32)
    angle = time[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def layer_norm(x: Float[Array, "*n D"]) -> Float32[Array, "*n D"]:
    """Zero mean, unit variance over the last axis, in float32, two passes, no affine."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(
        jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPSILON
    )


def rms_norm(x: Float[Array, "*n d"], scale: Float32[Array, " d"]) -> Float[Array, "*n d"]:
    """Unit mean square over the last axis, in float32, times `scale` (d,), in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + NORM_EPSILON)
    return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def modulate(
    x: Float[Array, "n T D"], shift: Float32[Array, "n D"], scale: Float32[Array, "n D"]
) -> Float32[Array, "n T D"]:
    """adaLN: normalise x (n, T, D), then scale and shift by (n, D) each; float32."""
    return layer_norm(x) * (1 + scale[:, None, :]) + shift[:, None, :]


def _linear(
    fan_in: int, fan_out: int, dtype: Any, rngs: nnx.Rngs, init: Any = _xavier
) -> nnx.Linear:
    return nnx.Linear(fan_in, fan_out, dtype=dtype, kernel_init=init, rngs=rngs)


def _attention_kernel(dtype: Any, head_width: int) -> Literal["cudnn"] | None:
    """cuDNN's fused attention where it exists: NVIDIA GPUs from Ampere on, 16 bits, these widths;
    else XLA's.
    """
    # "8.0"; AMD's reads "gfx90a", a CPU has none.
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    major = capability.partition(".")[0]
    fits = jnp.dtype(dtype).itemsize == 2 and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if fits and major.isdecimal() and int(major) >= 8 else None


class Block(nnx.Module):
    """Attention and MLP modulated and gated by the condition; adaLN-Zero starts as identity."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.width
        hidden = int(width * config.mlp_ratio)
        dtype = jnp.dtype(config.dtype)
        self.heads, self.dtype = config.heads, dtype
        # q, k, v in this order, as in timm and DiT
        self.qkv = _linear(width, 3 * width, dtype, rngs)
        self.attention_out = _linear(width, width, dtype, rngs)
        self.mlp_in = _linear(width, hidden, dtype, rngs)
        self.mlp_out = _linear(hidden, width, dtype, rngs)
        self.modulation = _linear(width, 6 * width, dtype, rngs, _zeros)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_scale = nnx.Param(jnp.ones(width // config.heads))
            self.k_scale = nnx.Param(jnp.ones(width // config.heads))

    def _attention(self, x: Float[Array, "n T D"]) -> Float[Array, "n T D"]:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if self.qk_norm:
            q, k = rms_norm(q, self.q_scale[...]), rms_norm(k, self.k_scale[...])
        kernel = _attention_kernel(self.dtype, width // self.heads)
        # JAX's attention mixes bfloat16 with float32 inside, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            attended = jax.nn.dot_product_attention(q, k, v, implementation=kernel)
        return self.attention_out(attended.reshape(x.shape))

    def __call__(
        self, x: Float[Array, "n T D"], condition: Float[Array, "n D"]
    ) -> Float[Array, "n T D"]:
        """x (n, T, D) in `dtype`, condition (n, D) after SiLU -> (n, T, D) in `dtype`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            self.modulation(condition).astype(jnp.float32), 6, axis=-1
        )
        update = self._attention(modulate(x, shift_a, scale_a).astype(self.dtype))
        x = self._gated(x, gate_a, update)
        update = self.mlp_out(
            jax.nn.gelu(self.mlp_in(modulate(x, shift_m, scale_m).astype(self.dtype)))
        )
        return self._gated(x, gate_m, update)

    def _gated(
        self, x: Float[Array, "n T D"], gate: Float32[Array, "n D"], update: Float[Array, "n T D"]
    ) -> Float[Array, "n T D"]:
        """x + gate * update, summed in float32: (n, T, D), (n, D), (n, T, D) -> (n, T, D)."""
        wide = x.astype(jnp.float32) + gate[:, None, :] * update.astype(jnp.float32)
        return wide.astype(self.dtype)


class DiT(nnx.Module):
    """Latent, time and label in, prediction out; what is predicted is the recipe's affair
    (`ModelConfig.output`).

    Raises:
        ValueError: the latent's height or width is not divisible by the patch size.
    """

    def __init__(
        self,
        config: ModelConfig,
        latent_shape: Shape,
        num_classes: int,
        constrain: Constrain,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = latent_shape
        if height % config.patch or width % config.patch:
            raise ValueError(f"latent {height}x{width} is not divisible by patch {config.patch}")
        dtype = jnp.dtype(config.dtype)
        self.config, self.constrain, self.patch, self.dtype = config, constrain, config.patch, dtype
        pixels = config.patch**2 * channels
        self.patch_embed = _linear(pixels, config.width, dtype, rngs)
        if config.time_conditioning:
            self.time_in = _linear(FREQUENCIES, config.width, jnp.float32, rngs, _normal)
            self.time_out = _linear(config.width, config.width, jnp.float32, rngs, _normal)
        # One row more than classes: the last is the learned null class of classifier-free guidance.
        self.label_embed = nnx.Embed(
            num_classes + 1, config.width, embedding_init=_normal, rngs=rngs
        )
        # so that both forms begin with the same numbers
        keys = jax.random.split(rngs.params(), config.depth)
        if config.scan:
            self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        else:
            self.blocks = nnx.List([Block(config, rngs=nnx.Rngs(key)) for key in keys])
        self.final_modulation = _linear(config.width, 2 * config.width, dtype, rngs, _zeros)
        self.final = _linear(config.width, pixels, dtype, rngs, _zeros)

    def __call__(self, x: Latents, t: Times, label: Labels) -> Latents:
        """The prediction at x.

        Args:
            x: (n, h, w, c) float32, latent in model scale.
            t: (n,) float32 in [0, 1]; 0 is noise and 1 is data, whatever convention the network was
                trained in.
            label: (n,) int32 in [0, num_classes]; num_classes is the null class.

        Returns:
            (n, h, w, c) float32.
        """
        n, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        patches = x.reshape(n, rows, self.patch, columns, self.patch, channels)
        tokens = self.patch_embed(
            patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, -1)
        )
        tokens = tokens + sincos_positions(rows, columns, tokens.shape[-1])[None].astype(self.dtype)

        condition = self._condition(t, label)
        tokens = self._through_blocks(self.constrain(tokens), condition)
        shift, scale = jnp.split(self.final_modulation(condition).astype(jnp.float32), 2, axis=-1)
        patches = self.final(modulate(tokens, shift, scale).astype(self.dtype)).astype(jnp.float32)

        patches = patches.reshape(n, rows, columns, self.patch, self.patch, channels)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, height, width, channels)

    def _condition(self, t: Times, label: Labels) -> Float[Array, "n D"]:
        """(n, D) in `dtype`, after SiLU."""
        embedding = self.label_embed(label)
        if self.config.time_conditioning:
            embedding = (
                self.time_out(jax.nn.silu(self.time_in(time_features(t, self.config)))) + embedding
            )
        return self.constrain(jax.nn.silu(embedding).astype(self.dtype))

    def _through_blocks(
        self, tokens: Float[Array, "n T D"], condition: Float[Array, "n D"]
    ) -> Float[Array, "n T D"]:
        """All blocks, one compiled body over stacked parameters or each on its own."""

        def apply(graph: Any, state: Any, tokens: jax.Array) -> jax.Array:
            return self.constrain(nnx.merge(graph, state)(tokens, condition))

        if self.config.remat or self.config.scan:
            # A loop keeps each value of its body that the backward pass wants, where XLA would have
            # fused most away.
            policy = None if self.config.remat else _is_product
            # In a loop nothing can be merged with the backward pass, so the barriers against it
            # would only cost.
            apply = jax.checkpoint(
                apply, prevent_cse=not self.config.scan, static_argnums=0, policy=policy
            )
        if self.config.scan:
            graph, state = nnx.split(self.blocks)
            return jax.lax.scan(lambda x, layer: (apply(graph, layer, x), None), tokens, state)[0]
        for block in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            tokens = apply(*nnx.split(block), tokens)
        return tokens


@dataclass(frozen=True, eq=False)
class Network:
    """A DiT taken apart into pure functions over a nested dict of parameters."""

    init: Callable[[jax.Array], Params]  # key -> parameters; jit it
    predict: Predict  # (params, x, t, label) -> prediction, shapes as `DiT.__call__`
    abstract: Params  # the parameters as ShapeDtypeStructs


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """Values kept for the backward pass: matrix products, fused attention; others are cheap."""
    return primitive.name == "dot_general" or primitive.name.startswith("dot_product_attention_fwd")


def _anywhere(x: jax.Array) -> jax.Array:
    return x


def make_network(
    config: ModelConfig, latent_shape: Shape, num_classes: int, constrain: Constrain = _anywhere
) -> Network:
    """A module split once, for `jax.jit` over dicts: nnx.jit costs more dispatch a step.

    Equal arguments give the same object, so that a plan, its training and what samples from it
    build the modules once, which takes a tenth of a second a block.
    """
    hashable: Any = config  # frozen pydantic models are, which type checkers do not see
    return _make_network(hashable, latent_shape, num_classes, constrain)


@lru_cache(maxsize=16)
def _make_network(
    config: ModelConfig, latent_shape: Shape, num_classes: int, constrain: Constrain
) -> Network:
    def build(key: jax.Array) -> DiT:
        return DiT(config, latent_shape, num_classes, constrain, rngs=nnx.Rngs(key))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(build(key))[1])

    skeleton, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def predict(params: Params, x: Latents, t: Times, label: Labels) -> Latents:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(skeleton, filled)(x, t, label)

    return Network(init, predict, nnx.to_pure_dict(state))


def stack_blocks(params: Params) -> Params:
    """Parameters of a network without `scan` as those of the same network with it: depth is the
    blocks' first axis.
    """
    blocks = [params["blocks"][number] for number in range(len(params["blocks"]))]
    return {**params, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Params, depth: int) -> Params:
    """The inverse of `stack_blocks`."""
    layers = {
        number: jax.tree.map(lambda leaf, i=number: leaf[i], params["blocks"])
        for number in range(depth)
    }
    return {**params, "blocks": layers}


def count_parameters(params: Params) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def forward_macs(config: ModelConfig, latent_shape: Shape) -> int:
    """Multiply-accumulates of one forward pass of one image (2 FLOPs each; a step takes 3).

    By formula, since XLA's cost analysis counts a loop body once: depth (12 T D^2 + 2 T^2 D + 6
    D^2) + 2 T p^2 c D + 2 D^2 + (256 D + D^2 for t), with 12 = 4 + 2 mlp_ratio.
    """
    height, width, channels = latent_shape
    tokens, d = (height // config.patch) * (width // config.patch), config.width
    hidden = int(d * config.mlp_ratio)
    block = tokens * (4 * d * d + 2 * d * hidden) + 2 * tokens * tokens * d + 6 * d * d
    time = FREQUENCIES * d + d * d if config.time_conditioning else 0
    return config.depth * block + 2 * tokens * config.patch**2 * channels * d + 2 * d * d + time
