"""AutoencoderTiny (TAESD and its family) in flax.nnx, a small stand-in for a model's VAE.

Ollin Boer Bohan's TAESD (github.com/madebyollin/taesd) as diffusers' `AutoencoderTiny` lays it out;
its `pool` blocks are TAEF2's, the one for FLUX.2. There is no posterior: an image has one latent,
(h/8, w/8, c), raw and about of unit deviation. Attribute names equal diffusers' parameter names, so
that `pipelines.encoders.weights` maps checkpoints mechanically. Images and latents are NHWC here.
Whatever the compute type is, the layers next to the image and the latent, and the statistics of
group norms, are float32.

Needs jax, flax, numpy, jaxtyping and the standard library only.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from pipelines.encoders.kl import ACTIVATIONS, GroupNorm, LayerBuilder, double
from pipelines.encoders.tiny_config import TinyConfig

POOL_WIDTH = 4  # times the width of the block
POOL_GROUPS = 4
POOL_EPSILON = 1e-5  # PyTorch's default, which the author's code takes
CLAMP = 3.0  # a latent enters the decoder as tanh(z / 3) * 3


class Activation(nnx.Module):
    """A function in a list of layers, where it has a number but no parameters."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
        return self.function(x)


class TinyBlock(nnx.Module):
    """Three convolutions with a skip connection, then ReLU; `pool` adds a branch before."""

    def __init__(self, width: int, pool: bool, build: LayerBuilder):
        function = Activation(build.activation)
        self.conv = nnx.List(
            [
                build.conv(width, width),
                function,
                build.conv(width, width),
                function,
                build.conv(width, width),
            ]
        )
        self.pool = nnx.List(_pool_layers(width, build) if pool else [])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        if len(self.pool):
            x = x + _through(self.pool, x)
        return jax.nn.relu(_through(self.conv, x) + x)


def _pool_layers(width: int, build: LayerBuilder) -> list[nnx.Module]:
    wide = POOL_WIDTH * width
    return [
        build.conv(width, wide, kernel=1, bias=False),
        GroupNorm(wide, POOL_GROUPS, POOL_EPSILON),
        Activation(jax.nn.relu),
        build.conv(wide, width, kernel=1, bias=False),
    ]


def _through(
    layers: Iterable[Callable[[jax.Array], jax.Array]], x: Float[Array, "n h w c"]
) -> Float[Array, "n H W C"]:
    for layer in layers:
        x = layer(x)
    return x


def _blocks(count: int, width: int, pool: bool, build: LayerBuilder) -> list[nnx.Module]:
    return [TinyBlock(width, pool, build) for _ in range(count)]


class TinyEncoder(nnx.Module):
    """(n, H, W, in_channels) in [-1, 1] -> (n, H/factor, W/factor, latent_channels) float32."""

    def __init__(self, config: TinyConfig, build: LayerBuilder):
        width = config.encoder_block_out_channels[0]
        last = len(config.num_encoder_blocks) - 1
        layers: list[nnx.Module] = []
        for stage, count in enumerate(config.num_encoder_blocks):
            if stage == 0:
                layers.append(build.exact.conv(config.in_channels, width))
            else:
                layers.append(build.conv(width, width, stride=2, padding=1, bias=False))
            layers += _blocks(count, width, config.pool and stage == last, build)
        layers.append(build.exact.conv(width, config.latent_channels))
        self.layers = nnx.List(layers)
        self.dtype = build.dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float32[Array, "n H W C"]:
        first, *inner, last = self.layers
        # the author's networks take images in [0, 1]
        hidden = first((x + 1) / 2).astype(self.dtype)
        return last(_through(inner, hidden).astype(jnp.float32))


class TinyDecoder(nnx.Module):
    """(n, h, w, latent_channels) -> (n, factor h, factor w, out_channels) float32, not clipped."""

    def __init__(self, config: TinyConfig, build: LayerBuilder):
        width = config.decoder_block_out_channels[0]
        last = len(config.num_decoder_blocks) - 1
        layers: list[nnx.Module] = [
            build.exact.conv(config.latent_channels, width),
            Activation(build.activation),
        ]
        for stage, count in enumerate(config.num_decoder_blocks):
            layers += _blocks(count, width, config.pool and stage == 0, build)
            if stage < last:
                layers += [Activation(double), build.conv(width, width, bias=False)]
        layers.append(build.exact.conv(width, config.out_channels))
        self.layers = nnx.List(layers)
        self.dtype = build.dtype

    def __call__(self, z: Float[Array, "n h w c"]) -> Float32[Array, "n H W C"]:
        first, *inner, last = self.layers
        hidden = first(jnp.tanh(z / CLAMP) * CLAMP).astype(self.dtype)
        return last(_through(inner, hidden).astype(jnp.float32)) * 2 - 1


class AutoencoderTiny(nnx.Module):
    """A tiny autoencoder of any size that diffusers' config describes.

    Args:
        config: the sizes.
        dtype: compute type, "float32" or "bfloat16"; parameters are float32.
        rngs: where initial weights come from.
        parts: "encoder", "decoder" or both. The author publishes them in two files, and either is
            of use alone.
    """

    def __init__(
        self,
        config: TinyConfig,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
        parts: Sequence[str] = ("encoder", "decoder"),
    ):
        build = LayerBuilder(rngs, jnp.dtype(dtype), POOL_GROUPS, ACTIVATIONS[config.act_fn])
        if "encoder" in parts:
            self.encoder = TinyEncoder(config, build)
        if "decoder" in parts:
            self.decoder = TinyDecoder(config, build)

    def encode(self, x: Float[Array, "n H W 3"]) -> tuple[Float32[Array, "n h w c"]]:
        """Latents of images: (n, H, W, 3) in [-1, 1] -> one (n, H/factor, W/factor,
        latent_channels) float32, raw.
        """
        return (self.encoder(x),)

    def decode(self, z: Float[Array, "n h w c"]) -> Float32[Array, "n H W 3"]:
        """Raw latents (n, h, w, channels) -> (n, factor h, factor w, 3) float32, not clipped."""
        return self.decoder(z)
