"""AutoencoderKL and AutoencoderTiny in PyTorch with diffusers' names, for `benchmarks/gpu.py`.

A GPU machine need not have diffusers. Outputs are compared with ours before anything is timed, and
ours are compared with diffusers' own classes by `tests/parity/test_vae.py`.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.encoders.kl import LOGVAR_RANGE, NORM_EPSILON
from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.tiny import CLAMP, POOL_EPSILON, POOL_GROUPS, POOL_WIDTH
from pipelines.encoders.tiny_config import TinyConfig


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


class Resnet(nn.Module):
    """norm, SiLU, conv, twice, beside a skip connection."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, NORM_EPSILON)
        self.conv1 = _conv(inputs, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, NORM_EPSILON)
        self.conv2 = _conv(outputs, outputs)
        self.conv_shortcut = _conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + self.conv_shortcut(x)


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, NORM_EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + mixed.transpose(1, 2).reshape(n, c, h, w)


class Resample(nn.Module):
    """Half the size by a convolution of stride 2, or twice the size by the nearest neighbour and a
    convolution.
    """

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = _conv(channels, channels) if up else nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        changed = (
            F.interpolate(x, scale_factor=2.0, mode="nearest")
            if self.up
            else F.pad(x, (0, 1, 0, 1))
        )
        return self.conv(changed)


class Mid(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, channels: int, config: VaeConfig):
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList(
            [Attention(channels, groups)] if config.mid_block_add_attention else []
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Stage(nn.Module):
    """Residual blocks of one resolution, and the way to the next."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, up: bool, last: bool):
        super().__init__()
        widths = [inputs] + [outputs] * layers
        self.resnets = nn.ModuleList(Resnet(a, b, groups) for a, b in pairwise(widths))
        ways = nn.ModuleList([] if last else [Resample(outputs, up)])
        self.upsamplers = ways if up else nn.ModuleList()
        self.downsamplers = nn.ModuleList() if up else ways

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers, *self.downsamplers):
            x = layer(x)
        return x


class Half(nn.Module):
    """Encoder or decoder."""

    def __init__(self, config: VaeConfig, up: bool):
        super().__init__()
        widths = config.block_out_channels[::-1] if up else config.block_out_channels
        layers, groups, latent = (
            config.layers_per_block + up,
            config.norm_num_groups,
            config.latent_channels,
        )
        pairs = list(enumerate(pairwise((widths[0], *widths))))
        stages = [
            Stage(a, b, layers, groups, up, number == len(pairs) - 1) for number, (a, b) in pairs
        ]
        self.up = up
        self.conv_in = _conv(latent if up else config.in_channels, widths[0])
        self.up_blocks = nn.ModuleList(stages if up else [])
        self.down_blocks = nn.ModuleList([] if up else stages)
        self.mid_block = Mid(widths[0] if up else widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPSILON)
        self.conv_out = _conv(widths[-1], config.out_channels if up else 2 * latent)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        order = (
            (self.mid_block, *self.up_blocks) if self.up else (*self.down_blocks, self.mid_block)
        )
        for block in order:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class KL(nn.Module):
    """Stable Diffusion's VAE."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        latent = config.latent_channels
        self.encoder, self.decoder = Half(config, up=False), Half(config, up=True)
        self.quant_conv = _conv(2 * latent, 2 * latent, 1)
        self.post_quant_conv = _conv(latent, latent, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] -> mean and log-variance side by side."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(*LOGVAR_RANGE)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents -> images in about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))


class Block(nn.Module):
    """Three convolutions with a skip connection; with `pool` a branch over groups goes before."""

    def __init__(self, width: int, pool: bool):
        super().__init__()
        relu = nn.ReLU()
        self.conv = nn.Sequential(
            _conv(width, width), relu, _conv(width, width), relu, _conv(width, width)
        )
        self.pool = nn.Sequential(*(self._branch(width) if pool else []))

    def _branch(self, width: int) -> list[nn.Module]:
        wide = POOL_WIDTH * width
        norm = nn.GroupNorm(POOL_GROUPS, wide, POOL_EPSILON)
        return [
            _conv(width, wide, 1, bias=False),
            norm,
            nn.ReLU(),
            _conv(wide, width, 1, bias=False),
        ]

    def forward(self, x: Tensor) -> Tensor:
        if len(self.pool):
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class Layers(nn.Module):
    """A list under diffusers' name."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Tiny(nn.Module):
    """TAESD's family, with TAEF2's pooling blocks."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width = config.encoder_block_out_channels[0]
        last = len(config.num_encoder_blocks) - 1
        layers: list[nn.Module] = []
        for stage, count in enumerate(config.num_encoder_blocks):
            layers += [
                _conv(width, width, 3, 2, bias=False) if stage else _conv(config.in_channels, width)
            ]
            layers += [Block(width, config.pool and stage == last) for _ in range(count)]
        self.encoder = Layers([*layers, _conv(width, config.latent_channels)])
        layers = [_conv(config.latent_channels, width), nn.ReLU()]
        for stage, count in enumerate(config.num_decoder_blocks):
            layers += [Block(width, config.pool and stage == 0) for _ in range(count)]
            layers += (
                [nn.Upsample(scale_factor=2.0), _conv(width, width, bias=False)]
                if stage < last
                else []
            )
        self.decoder = Layers([*layers, _conv(width, config.out_channels)])

    def encode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] -> latents."""
        return self.encoder((x + 1) / 2)

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images in about [-1, 1]."""
        return self.decoder(torch.tanh(z / CLAMP) * CLAMP) * 2 - 1


def autoencoder(
    config: VaeConfig | TinyConfig, tensors: Mapping[str, NDArray[np.float32]], device: torch.device
) -> KL | Tiny:
    """The network of a config with tensors by diffusers' names, all of them, float32, channels
    last.
    """
    model = KL(config) if isinstance(config, VaeConfig) else Tiny(config)
    model.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    )
    return model.to(device).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
