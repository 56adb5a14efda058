"""Weights of a VAE: from diffusers' safetensors into the network and back.

Tensors go by diffusers' (PyTorch's) names and shapes; `pipelines.encoders.kl` names its attributes
alike, so the mapping is a renaming of the last part of a path and a transposition. JAX is imported
by the functions that need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.locate import (
    PTH,
    NetworkConfig,
    decoder_digest,
    find_vae,
    read_vae_config,
    split_halves,
    vae_digest,
    weight_files,
)
from pipelines.encoders.tiny_config import TinyConfig
from pipelines.encoders.tiny_files import join_halves
from pipelines.encoders.torch_file import read_torch_file
from pipelines.encoders.weight_files import CONFIG_FILE, WEIGHTS_FILE
from schemas.errors import UserError
from schemas.pixels import from_uint8

if TYPE_CHECKING:
    import jax
    from flax import nnx

    from pipelines.encoders.kl import AutoencoderKL
    from pipelines.encoders.tiny import AutoencoderTiny
    from schemas.manifest import VaeInfo

    Network = AutoencoderKL | AutoencoderTiny

DTYPES = ("float32", "bfloat16")

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# Before version 0.15 diffusers named the projections of the attention block like this.
_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


PARTS = ("encoder", "decoder")


@dataclass(frozen=True)
class Vae:
    """A loaded VAE; VAEs of one config and type share what is compiled, once a shape.

    `digest` and `decoder_digest` are as `schemas.manifest.VaeInfo` has them, `parts` those of the
    network that could be
    had: a tiny autoencoder's encoder may lie there alone.
    """

    name: str
    config: NetworkConfig
    digest: str
    dtype: str
    graphdef: nnx.GraphDef
    params: nnx.State
    decoder_digest: str | None = None
    parts: tuple[str, ...] = PARTS

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return "decoder" in self.parts

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Images (n, H, W, 3) in [-1, 1] -> what a record holds, raw, (n, h, w, c) float32 each.

        Mean and log-variance of the posterior, or of a network without one the latent alone; in the
        order of `schemas.layout.layout_tensors`.
        """
        return self._compiled("encode")(self.params, x)

    def encode_pixels(self, pixels: jax.Array) -> tuple[jax.Array, ...]:
        """`encode` of uint8 images (n, H, W, 3), a quarter of the bytes to move to a device."""
        return self._compiled("encode_pixels")(self.params, pixels)

    def decode(self, z: jax.Array) -> jax.Array:
        """Raw latents (n, h, w, c) -> images (n, H, W, 3) float32, about [-1, 1], not clipped.

        Raises:
            UserError: the decoder is a file of its own that is not there.
        """
        if not self.decodes:
            raise UserError(
                f"the VAE {self.name} has no decoder; put its file beside the encoder's, named "
                "alike: "
                "NAME_decoder.safetensors"
            )
        return self._compiled("decode")(self.params, z)

    def _compiled(self, method: str) -> Callable[..., Any]:
        return _compiled(self.config, self.dtype, method, self.parts)


def replaced_part(vae: Vae, info: VaeInfo) -> Literal["weights", "config", "decoder"] | None:
    """The first part of a loaded VAE that is not the one `info` was written for; None if all are.

    A decoder matters where it stood in a file of its own beside the encoder.
    """
    if vae.digest != info.sha256:
        return "weights"
    if vae.config.digest() != info.config_sha256:
        return "config"
    if info.decoder_sha256 is not None and vae.decoder_digest != info.decoder_sha256:
        return "decoder"
    return None


def abstract_network(
    config: NetworkConfig, dtype: str = "float32", parts: tuple[str, ...] = PARTS
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the network and, in place of its parameters, their shapes."""
    from flax import nnx

    return nnx.split(nnx.eval_shape(lambda: _NETWORKS[type(config)](config, dtype, parts)))


def _kl(config: VaeConfig, dtype: str, parts: tuple[str, ...]) -> AutoencoderKL:
    from flax import nnx

    from pipelines.encoders.kl import AutoencoderKL

    return AutoencoderKL(config, dtype=dtype, rngs=nnx.Rngs(0))


def _tiny(config: TinyConfig, dtype: str, parts: tuple[str, ...]) -> AutoencoderTiny:
    from flax import nnx

    from pipelines.encoders.tiny import AutoencoderTiny

    return AutoencoderTiny(config, dtype=dtype, rngs=nnx.Rngs(0), parts=parts)


_NETWORKS: dict[type, Callable[..., Network]] = {VaeConfig: _kl, TinyConfig: _tiny}


@cache
def _compiled(
    config: NetworkConfig, dtype: str, method: str, parts: tuple[str, ...]
) -> Callable[..., Any]:
    import jax
    from flax import nnx

    graphdef, _ = abstract_network(config, dtype, parts)
    return jax.jit(lambda params, x: _METHODS[method](nnx.merge(graphdef, params), x))


def _encode_pixels(model: Network, pixels: jax.Array) -> tuple[jax.Array, ...]:
    import jax.numpy as jnp

    # Looked up, not computed: a compiler may turn the division into a product, and the numbers
    # would not be those of the one place that says what a pixel is.
    levels = jnp.asarray(from_uint8(np.arange(256, dtype=np.uint8)))
    return model.encode(levels.at[pixels].get(mode="promise_in_bounds"))


_METHODS: dict[str, Callable[[Network, jax.Array], Any]] = {
    "encode": lambda model, x: model.encode(x),
    "encode_pixels": _encode_pixels,
    "decode": lambda model, z: model.decode(z),
}


def load_vae(name: str, dtype: str = "float32", revision: str | None = None) -> Vae:
    """Find a VAE, read its config and weights, and check that every tensor fits.

    Args:
        name: as for `pipelines.encoders.locate.find_vae`.
        dtype: compute type, "float32" or "bfloat16"; parameters are kept in float32 (float16 and
            bfloat16 files are widened).
        revision: of a VAE on the hub, as for `find_vae`.

    Raises:
        UserError: the VAE cannot be had, or tensors are missing, left over, or of other shapes.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"unknown compute type {dtype!r} for the VAE; it can be {' or '.join(DTYPES)}"
        )
    directory = find_vae(name, revision).directory
    config = read_vae_config(directory)
    halves = split_halves(directory)
    if halves is None:
        parts, tensors = PARTS, _modern_names(_read_tensors(weight_files(directory)))
    else:
        parts = halves.parts
        files = zip(halves.parts, halves.files, strict=True)
        tensors = join_halves({half: _read_tensors([file]) for half, file in files})
    graphdef, state = abstract_network(config, dtype, parts)
    params = _fill(state, tensors, directory)
    return Vae(
        name,
        config,
        vae_digest(directory),
        dtype,
        graphdef,
        params,
        decoder_digest(directory),
        parts,
    )


def save_vae(model: Network, config: NetworkConfig, directory: Path) -> None:
    """Write `config.json` and float32 weights in diffusers' layout, which diffusers loads."""
    from flax import nnx
    from safetensors.numpy import save_file

    _, state = nnx.split(model, nnx.Param)
    tensors = {
        tensor_name(path): np.ascontiguousarray(to_torch_layout(np.asarray(value, np.float32)))
        if path[-1] == "kernel"
        else np.asarray(value, np.float32)
        for path, value in _flatten(nnx.to_pure_dict(state)).items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def tensor_name(path: tuple[str | int, ...]) -> str:
    """diffusers' name: ('encoder', 'conv_in', 'kernel') -> 'encoder.conv_in.weight'."""
    return ".".join([*(str(part) for part in path[:-1]), _LEAF_NAMES[str(path[-1])]])


def to_torch_layout(kernel: np.ndarray) -> np.ndarray:
    """Convolution HWIO -> OIHW, linear (in, out) -> (out, in)."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def from_torch_layout(weight: np.ndarray) -> np.ndarray:
    """Convolution OIHW -> HWIO, linear (out, in) -> (in, out)."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def _read_tensors(files: Iterable[Path]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # safetensors.numpy does not know bfloat16

    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if file.suffix == PTH:
            tensors |= read_torch_file(file)  # widened when their shapes have been looked at
            continue
        try:
            tensors |= {
                name: np.asarray(value).astype(np.float32)
                for name, value in load_file(file).items()
            }
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {file}: {error}; fetch it again") from error
    return tensors


def _modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename old checkpoints' attention projections, which may be 1x1 convolutions."""
    renamed = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if len(parts) > 2 and "attentions" in parts:
            parts[-2] = _OLD_ATTENTION.get(parts[-2], parts[-2])
            if value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]
        renamed[".".join(parts)] = value
    return renamed


def _fill(state: nnx.State, tensors: Mapping[str, np.ndarray], directory: Path) -> nnx.State:
    """Put tensors in the places of an abstract state, each exactly once and of the right shape."""
    import jax.numpy as jnp
    from flax import nnx

    wanted = {
        tensor_name(path): (path, leaf) for path, leaf in _flatten(nnx.to_pure_dict(state)).items()
    }
    missing = sorted(wanted.keys() - tensors.keys())
    unused = sorted(tensors.keys() - wanted.keys())
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} tensors that its network asks for, first "
            f"{missing[0]}"
        )
    if unused:
        raise UserError(
            f"{directory} has {len(unused)} tensors that its network has no place for, first "
            f"{unused[0]}"
        )
    filled: dict[tuple[str | int, ...], jax.Array] = {}
    for name, (path, leaf) in wanted.items():
        tensor = tensors[name]
        value = from_torch_layout(tensor) if path[-1] == "kernel" else tensor
        if value.shape != leaf.shape:
            wished = (
                to_torch_layout(np.empty(leaf.shape)).shape if path[-1] == "kernel" else leaf.shape
            )
            raise UserError(
                f"{directory} has {name} of shape {tensor.shape}; its network asks for {wished}"
            )
        filled[path] = jnp.asarray(value, jnp.float32)
    nnx.replace_by_pure_dict(state, _unflatten(filled))
    return state


def _flatten(
    tree: Mapping[Any, Any], prefix: tuple[str | int, ...] = ()
) -> dict[tuple[str | int, ...], Any]:
    flat: dict[tuple[str | int, ...], Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, (*prefix, key))
            if isinstance(value, Mapping)
            else {(*prefix, key): value}
        )
    return flat


def _unflatten(flat: Mapping[tuple[str | int, ...], Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
