"""AutoencoderKL (Rombach et al. 2022, arXiv:2112.10752) in flax.nnx, laid out as diffusers'.

Attribute names equal diffusers' parameter names, so that `pipelines.encoders.weights` maps
checkpoints mechanically. Images and latents are NHWC here. Whatever the compute type is, norm
statistics, the attention softmax and the last layers, those that give the moments and the image,
are float32.

Needs jax, flax, numpy, jaxtyping and the standard library only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from pipelines.encoders.kl_config import VaeConfig

NORM_EPSILON = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


@dataclass(frozen=True)
class LayerBuilder:
    """What the layers of a network share: compute type, groups, activation, initial weights."""

    rngs: nnx.Rngs
    dtype: jnp.dtype
    groups: int
    activation: Callable[[jax.Array], jax.Array]

    @property
    def precision(self) -> jax.lax.Precision:
        # Float32 means float32 also on GPU and TPU, where the default would round the operands to
        # fewer bits.
        return jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    @property
    def exact(self) -> "LayerBuilder":
        """For the layers next to the moments and the image, in float32 always: next to no work, and
        in bfloat16 they would round the result itself, which was measured to be two fifths of the
        error."""
        return replace(self, dtype=jnp.dtype("float32"))

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> nnx.Conv:
        """A convolution that pads by half its kernel; one with a stride pads only if told to."""
        edge = padding
        if edge is None:
            edge = 0 if stride > 1 else kernel // 2
        return nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding=((edge, edge), (edge, edge)),
            use_bias=bias,
            dtype=self.dtype,
            precision=self.precision,
            rngs=self.rngs,
        )

    def linear(self, inputs: int, outputs: int) -> nnx.Linear:
        return nnx.Linear(
            inputs, outputs, dtype=self.dtype, precision=self.precision, rngs=self.rngs
        )

    def norm(self, channels: int) -> "GroupNorm":
        return GroupNorm(channels, self.groups)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494) with two-pass float32 statistics.

    E[x^2] - E[x]^2 loses every digit once a channel's mean is large against its spread, as it is in
    trained checkpoints; so the mean is subtracted first.
    """

    def __init__(self, channels: int, groups: int, epsilon: float = NORM_EPSILON):
        self.groups = groups
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """(n, h, w, c) -> (n, h, w, c) in the type of `x`."""
        n, h, w, c = x.shape
        grouped = x.astype(jnp.float32).reshape(n, h * w, self.groups, c // self.groups)
        centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 3), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(n, h, w, c)
        scale = self.scale[...].reshape(1, 1, 1, c)
        bias = self.bias[...].reshape(1, 1, 1, c)
        return (normal * scale + bias).astype(x.dtype)


class ResnetBlock(nnx.Module):
    """Norm, activation, conv, twice; the skip connection is 1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int, build: LayerBuilder):
        self.activation = build.activation
        self.norm1 = build.norm(inputs)
        self.conv1 = build.conv(inputs, outputs)
        self.norm2 = build.norm(outputs)
        self.conv2 = build.conv(outputs, outputs)
        self.conv_shortcut = build.conv(inputs, outputs, kernel=1) if inputs != outputs else None

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w C"]:
        y = self.conv1(self.activation(self.norm1(x)))
        y = self.conv2(self.activation(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Self-attention over all positions, one head as wide as the features, with a skip."""

    def __init__(self, channels: int, build: LayerBuilder):
        self.precision = build.precision
        self.group_norm = build.norm(channels)
        self.to_q = build.linear(channels, channels)
        self.to_k = build.linear(channels, channels)
        self.to_v = build.linear(channels, channels)
        self.to_out = nnx.List([build.linear(channels, channels)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        tokens = self.group_norm(x).reshape(n, h * w, c)
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        einsum = partial(jnp.einsum, precision=self.precision)
        scores = einsum("nqc,nkc->nqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * c**-0.5, axis=-1).astype(value.dtype)
        return x + self.to_out[0](einsum("nqk,nkc->nqc", weights, value)).reshape(n, h, w, c)


class Downsample(nnx.Module):
    """Halves the resolution: stride 2, padded below and to the right as in diffusers."""

    def __init__(self, channels: int, build: LayerBuilder):
        self.conv = build.conv(channels, channels, stride=2)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
        return self.conv(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Upsample(nnx.Module):
    """Doubles the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, build: LayerBuilder):
        self.conv = build.conv(channels, channels)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
        return self.conv(double(x))


def double(x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
    """Twice the resolution by nearest neighbour: (n, h, w, c) -> (n, 2h, 2w, c)."""
    n, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return doubled.reshape(n, 2 * h, 2 * w, c)


class MidBlock(nnx.Module):
    """Two residual blocks at the lowest resolution, with or without attention between them."""

    def __init__(self, channels: int, attention: bool, build: LayerBuilder):
        self.resnets = nnx.List([ResnetBlock(channels, channels, build) for _ in range(2)])
        self.attentions = nnx.List([Attention(channels, build)] if attention else [])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownBlock(nnx.Module):
    """`layers` residual blocks, then half the resolution unless it is the last block."""

    def __init__(self, inputs: int, outputs: int, layers: int, last: bool, build: LayerBuilder):
        widths = [inputs] + [outputs] * layers
        self.resnets = nnx.List([ResnetBlock(a, b, build) for a, b in pairwise(widths)])
        self.downsamplers = nnx.List([] if last else [Downsample(outputs, build)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W C"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """`layers` residual blocks, then double the resolution unless it is the last block."""

    def __init__(self, inputs: int, outputs: int, layers: int, last: bool, build: LayerBuilder):
        widths = [inputs] + [outputs] * layers
        self.resnets = nnx.List([ResnetBlock(a, b, build) for a, b in pairwise(widths)])
        self.upsamplers = nnx.List([] if last else [Upsample(outputs, build)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W C"]:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class KlEncoder(nnx.Module):
    """(n, H, W, in_channels) -> (n, H/factor, W/factor, 2 latent_channels): mean, log-variance."""

    def __init__(self, config: VaeConfig, build: LayerBuilder):
        widths = config.block_out_channels
        pairs = list(pairwise((widths[0], *widths)))
        self.conv_in = build.conv(config.in_channels, widths[0])
        self.down_blocks = nnx.List(
            [
                DownBlock(a, b, config.layers_per_block, index == len(pairs) - 1, build)
                for index, (a, b) in enumerate(pairs)
            ]
        )
        self.mid_block = MidBlock(widths[-1], config.mid_block_add_attention, build)
        self.conv_norm_out = build.norm(widths[-1])
        self.conv_out = build.exact.conv(widths[-1], 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float32[Array, "n H W C"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        # diffusers fixes this activation to SiLU; `act_fn` speaks of the residual blocks only.
        x = self.mid_block(x).astype(jnp.float32)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class KlDecoder(nnx.Module):
    """(n, h, w, latent_channels) -> (n, factor h, factor w, out_channels)."""

    def __init__(self, config: VaeConfig, build: LayerBuilder):
        widths = config.block_out_channels[::-1]
        pairs = list(pairwise((widths[0], *widths)))
        self.conv_in = build.conv(config.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], config.mid_block_add_attention, build)
        self.up_blocks = nnx.List(
            [
                UpBlock(a, b, config.layers_per_block + 1, index == len(pairs) - 1, build)
                for index, (a, b) in enumerate(pairs)
            ]
        )
        self.conv_norm_out = build.norm(widths[-1])
        self.conv_out = build.exact.conv(widths[-1], config.out_channels)

    def __call__(self, z: Float[Array, "n h w c"]) -> Float32[Array, "n H W C"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x.astype(jnp.float32))))


class AutoencoderKL(nnx.Module):
    """The variational autoencoder of latent diffusion, any size that diffusers' config describes.

    Args:
        config: the sizes.
        dtype: compute type, "float32" or "bfloat16"; parameters are float32.
        rngs: where initial weights come from.
    """

    def __init__(self, config: VaeConfig, *, dtype: str = "float32", rngs: nnx.Rngs):
        build = LayerBuilder(
            rngs, jnp.dtype(dtype), config.norm_num_groups, ACTIVATIONS[config.act_fn]
        )
        latent = config.latent_channels
        self.encoder = KlEncoder(config, build)
        self.decoder = KlDecoder(config, build)
        self.quant_conv = (
            build.exact.conv(2 * latent, 2 * latent, kernel=1) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            build.exact.conv(latent, latent, kernel=1) if config.use_post_quant_conv else None
        )

    def encode(
        self, x: Float[Array, "n H W 3"]
    ) -> tuple[Float32[Array, "n h w c"], Float32[Array, "n h w c"]]:
        """Posterior moments of images.

        Args:
            x: (n, H, W, 3) in [-1, 1], H and W multiples of the factor.

        Returns:
            mean and log-variance, each (n, H/factor, W/factor, latent_channels) float32, raw:
            neither scaled nor shifted. The log-variance is clipped to [-30, 20].
        """
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: Float[Array, "n h w c"]) -> Float32[Array, "n H W 3"]:
        """Raw latents (n, h, w, channels) -> (n, factor h, factor w, 3) float32, not clipped."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)
