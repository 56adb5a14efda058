"""The Diffusion Transformer in PyTorch with random weights: diffusers' class, and one in the layout
of DiT and SiT.

Each comes with the function that puts its weights, or their gradients, where ours are, which only
transposes and joins.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.torch_vae import import_diffusers

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
nn = torch.nn
State = Mapping[str, np.ndarray]


def randomise(model: Any, seed: int) -> Any:
    """Every weight and bias away from the zeros and ones at which two of them could be swapped
    unnoticed.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:
                parameter.uniform_(-0.3, 0.3)
    return model.eval()


def arrays(tensors: Mapping[str, Any]) -> State:
    """Of a state dict or of gradients by name."""
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _linear(state: State, *names: str) -> dict[str, Any]:
    """One of our linear layers from one or several of theirs, side by side in the output."""
    kernels = [state[f"{name}.weight"].reshape(len(state[f"{name}.bias"]), -1).T for name in names]
    bias = np.concatenate([state[f"{name}.bias"] for name in names])
    return {"kernel": jnp.asarray(np.concatenate(kernels, axis=1)), "bias": jnp.asarray(bias)}


def _patches(state: State, name: str) -> dict[str, Any]:
    """A convolution of stride p over (D, c, p, p) as a linear layer on patches flattened in the
    order p, p, c.
    """
    weight = state[f"{name}.weight"].transpose(0, 2, 3, 1)
    return _linear({f"{name}.weight": weight, f"{name}.bias": state[f"{name}.bias"]}, name)


# diffusers


def random_diffusers_dit(seed: int = 0, **config: Any) -> Any:
    """`DiTTransformer2DModel` in float32 whose blocks share one embedding of time and label, as in
    the paper.
    """
    model = import_diffusers().DiTTransformer2DModel(norm_eps=1e-6, **config)
    first = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = first
    return randomise(model, seed)


def from_diffusers(state: State, depth: int) -> dict[str, Any]:
    """Our parameters, without `scan`."""

    def block(number: int) -> dict[str, Any]:
        name = f"transformer_blocks.{number}"
        return {
            "qkv": _linear(state, *(f"{name}.attn1.to_{which}" for which in "qkv")),
            "attention_out": _linear(state, f"{name}.attn1.to_out.0"),
            "mlp_in": _linear(state, f"{name}.ff.net.0.proj"),
            "mlp_out": _linear(state, f"{name}.ff.net.2"),
            "modulation": _linear(state, f"{name}.norm1.linear"),
        }

    embedders = "transformer_blocks.0.norm1.emb"
    return {
        "patch_embed": _patches(state, "pos_embed.proj"),
        "time_in": _linear(state, f"{embedders}.timestep_embedder.linear_1"),
        "time_out": _linear(state, f"{embedders}.timestep_embedder.linear_2"),
        "label_embed": {
            "embedding": jnp.asarray(state[f"{embedders}.class_embedder.embedding_table.weight"])
        },
        "blocks": {number: block(number) for number in range(depth)},
        "final_modulation": _linear(state, "proj_out_1"),
        "final": _linear(state, "proj_out_2"),
    }


# The layout of DiT and SiT


class Attention(nn.Module):
    """Fused qkv, as timm has it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Any) -> Any:
        n, tokens, width = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(n, tokens, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any) -> Any:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


def _norm(x: Any) -> Any:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _modulate(x: Any, shift: Any, scale: Any) -> Any:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Any, condition: Any) -> Any:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            condition
        ).chunk(6, 1)
        x = x + gate_msa.unsqueeze(1) * self.attn(_modulate(_norm(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.mlp(_modulate(_norm(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Any, condition: Any) -> Any:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(_modulate(_norm(x), shift, scale))


class TimestepEmbedder(nn.Module):
    """cos then sin of t * 10000^(-k / half)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Any) -> Any:
        frequencies = torch.exp(-math.log(10000) * torch.arange(0, 128, dtype=torch.float32) / 128)
        angles = t[:, None].float() * frequencies[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Any) -> Any:
        return self.embedding_table(labels)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Any) -> Any:
        return self.proj(x).flatten(2).transpose(1, 2)


def sincos_2d(width: int, side: int) -> np.ndarray:
    """As MAE makes it: the x coordinate in the first half of the channels."""

    def encode(positions: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
        out = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    x, y = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    return np.concatenate([encode(x), encode(y)], axis=1)


class TorchDiT(nn.Module):
    """Peebles & Xie 2023 without learned variances; names of its parameters as their code and SiT's
    have them.
    """

    def __init__(
        self,
        side: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        classes: int,
    ):
        super().__init__()
        self.patch, self.side, self.channels = patch, side // patch, channels
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(classes, width)
        self.register_buffer(
            "pos_embed", torch.from_numpy(sincos_2d(width, self.side)).float()[None]
        )
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def forward(self, x: Any, t: Any, y: Any) -> Any:
        """x (n, c, h, w), t (n,) as the network has it, y (n,) -> (n, c, h, w)."""
        condition = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.final_layer(tokens, condition)
        tokens = tokens.reshape(len(x), self.side, self.side, self.patch, self.patch, self.channels)
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(x.shape)


def from_sit(state: State, depth: int) -> dict[str, Any]:
    """Our parameters, without `scan`."""

    def block(number: int) -> dict[str, Any]:
        name = f"blocks.{number}"
        return {
            "qkv": _linear(state, f"{name}.attn.qkv"),
            "attention_out": _linear(state, f"{name}.attn.proj"),
            "mlp_in": _linear(state, f"{name}.mlp.fc1"),
            "mlp_out": _linear(state, f"{name}.mlp.fc2"),
            "modulation": _linear(state, f"{name}.adaLN_modulation.1"),
        }

    return {
        "patch_embed": _patches(state, "x_embedder.proj"),
        "time_in": _linear(state, "t_embedder.mlp.0"),
        "time_out": _linear(state, "t_embedder.mlp.2"),
        "label_embed": {"embedding": jnp.asarray(state["y_embedder.embedding_table.weight"])},
        "blocks": {number: block(number) for number in range(depth)},
        "final_modulation": _linear(state, "final_layer.adaLN_modulation.1"),
        "final": _linear(state, "final_layer.linear"),
    }
