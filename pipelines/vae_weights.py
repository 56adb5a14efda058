"""VAE checkpoints in diffusers' layout: find, read, digest and write them.

A VAE is a directory with `config.json` and one safetensors file. Tensors go by diffusers' (PyTorch's) names and shapes;
`pipelines.vae` names its attributes alike, so the mapping is a renaming of the last part of a path and a transposition.

The functions that need JAX import it when called, so that a VAE can be found and digested without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.vae_config import VaeConfig
from schemas.errors import UserError

if TYPE_CHECKING:
    import jax
    from flax import nnx

    from pipelines.vae import AutoencoderKL

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent / "assets" / "embedded-vae"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DTYPES = ("float32", "bfloat16")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# Before version 0.15 diffusers named the projections of the attention block like this.
_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


@dataclass(frozen=True)
class Vae:
    """A loaded VAE: `encode` and `decode` are compiled once per shape, shared by all VAEs of one config and type."""

    name: str
    config: VaeConfig
    digest: str
    dtype: str
    graphdef: nnx.GraphDef
    params: nnx.State

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (n, H, W, 3) in [-1, 1] -> raw mean and log-variance, each (n, h, w, c) float32."""
        return _compiled(self.config, self.dtype, "encode")(self.params, x)

    def decode(self, z: jax.Array) -> jax.Array:
        """Raw latents (n, h, w, c) -> images (n, H, W, 3) float32, about [-1, 1], not clipped."""
        return _compiled(self.config, self.dtype, "decode")(self.params, z)


def _abstract(config: VaeConfig, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the network and, in place of its parameters, their shapes."""
    from flax import nnx

    from pipelines.vae import AutoencoderKL

    return nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, dtype=dtype, rngs=nnx.Rngs(0))))


@cache
def _compiled(config: VaeConfig, dtype: str, method: str) -> Callable[..., Any]:
    import jax
    from flax import nnx

    graphdef, _ = _abstract(config, dtype)
    return jax.jit(lambda params, x: getattr(nnx.merge(graphdef, params), method)(x))


def resolve_vae(name: str, revision: str | None = None) -> Path:
    """Directory of a VAE: "embedded", an existing directory, or a hub id, fetched or found in the hub's cache.

    `HF_HUB_OFFLINE`, `HF_HOME` and the like are respected.

    Raises:
        UserError: nothing of that name can be had.
    """
    if name == EMBEDDED:
        return EMBEDDED_DIRECTORY
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"the VAE {name} is a file; give the directory that holds {CONFIG_FILE} and the safetensors")
    if not _HUB_ID.fullmatch(name) or name.startswith(("./", "../", "~")):
        raise UserError(f"no such VAE directory: {name} (give a directory, a hub id like org/name, or {EMBEDDED!r})")
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"the VAE {name} is no local directory, and fetching it needs `pip install huggingface_hub`"
        ) from None
    try:
        # The weights only, in the one format that can be read without running code from the file.
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_FILE, "*.safetensors"]))
    except Exception as error:  # the hub's client raises its own, httpx's, requests' and OS errors alike
        reason = (str(error).strip().splitlines() or [""])[0].strip()
        raise UserError(
            f"cannot get the VAE {name} from the hub ({type(error).__name__}: {reason}); "
            f"give a local directory or {EMBEDDED!r}"
        ) from error


def vae_revision(path: Path) -> str | None:
    """Commit of a VAE that lies in the hub's cache (`.../snapshots/COMMIT`), None for any other directory."""
    return path.name if path.parent.name == "snapshots" else None


def read_vae_config(path: Path) -> VaeConfig:
    """Read `config.json` of a VAE directory.

    Raises:
        UserError: no such file, no JSON object in it, or a network that is not supported.
    """
    if not path.is_dir():
        raise UserError(f"no such VAE directory: {path}")
    file = path / CONFIG_FILE
    if not file.is_file():
        if (path / "vae" / CONFIG_FILE).is_file():
            raise UserError(f"{path} holds a whole pipeline; give its VAE: {path / 'vae'}")
        raise UserError(f"no {CONFIG_FILE} in the VAE directory {path}; it must be in diffusers' format")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return VaeConfig.from_dict(values)


def weights_file(path: Path) -> Path:
    """The safetensors file of a VAE directory; pickled weights are refused.

    Raises:
        UserError: there is none, or several and none of diffusers' name.
    """
    preferred = path / WEIGHTS_FILE
    if preferred.is_file():
        return preferred
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{path} has several weight files ({names}) and no {WEIGHTS_FILE}; keep the one to use")
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt", "*.pth") for file in path.glob(pattern))
    if pickled:
        raise UserError(
            f"{path} has only pickled weights ({pickled[0]}), which can run code when read; "
            f"convert them to {WEIGHTS_FILE}"
        )
    raise UserError(f"no safetensors file in the VAE directory {path}")


def vae_digest(path: Path) -> str:
    """SHA-256 (hex) of the weight file of a VAE directory."""
    with weights_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_vae(name: str, dtype: str = "float32") -> Vae:
    """Find a VAE, read its config and weights, and check that they fit each other to the last tensor.

    Args:
        name: as for `resolve_vae`.
        dtype: compute type, "float32" or "bfloat16"; parameters are kept in float32 (float16 and bfloat16 files are
            widened).

    Raises:
        UserError: the VAE cannot be had, or tensors are missing, left over, or of other shapes.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown compute type {dtype!r} for the VAE; it can be {' or '.join(DTYPES)}")
    path = resolve_vae(name)
    config = read_vae_config(path)
    file = weights_file(path)
    tensors = _modern_names(_read_tensors(file))
    graphdef, state = _abstract(config, dtype)
    params = _fill(state, tensors, file)
    return Vae(name, config, vae_digest(path), dtype, graphdef, params)


def save_vae(model: AutoencoderKL, config: VaeConfig, directory: Path) -> None:
    """Write `config.json` and the weights (float32) in diffusers' layout; diffusers loads the directory as it is."""
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
    """diffusers' name of a parameter of ours: ('encoder', 'conv_in', 'kernel') -> 'encoder.conv_in.weight'."""
    return ".".join([*(str(part) for part in path[:-1]), _LEAF_NAMES[str(path[-1])]])


def to_torch_layout(kernel: np.ndarray) -> np.ndarray:
    """Convolution HWIO -> OIHW, linear (in, out) -> (out, in)."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def from_torch_layout(weight: np.ndarray) -> np.ndarray:
    """Convolution OIHW -> HWIO, linear (out, in) -> (in, out)."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # safetensors.numpy does not know bfloat16

    try:
        return {name: np.asarray(value).astype(np.float32) for name, value in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {file}: {error}; fetch it again") from error


def _modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the attention projections of old checkpoints; some of them are stored as 1x1 convolutions."""
    renamed = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if len(parts) > 2 and "attentions" in parts:
            parts[-2] = _OLD_ATTENTION.get(parts[-2], parts[-2])
            if value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]
        renamed[".".join(parts)] = value
    return renamed


def _fill(state: nnx.State, tensors: Mapping[str, np.ndarray], file: Path) -> nnx.State:
    """Put tensors in the places of an abstract state, each exactly once and of the right shape."""
    import jax.numpy as jnp
    from flax import nnx

    wanted = {tensor_name(path): (path, leaf) for path, leaf in _flatten(nnx.to_pure_dict(state)).items()}
    missing, unused = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing:
        raise UserError(f"{file} lacks {len(missing)} tensors that its {CONFIG_FILE} asks for, first {missing[0]}")
    if unused:
        raise UserError(f"{file} has {len(unused)} tensors that its {CONFIG_FILE} has no place for, first {unused[0]}")
    filled: dict[tuple[str | int, ...], jax.Array] = {}
    for name, (path, leaf) in wanted.items():
        tensor = tensors[name]
        value = from_torch_layout(tensor) if path[-1] == "kernel" else tensor
        if value.shape != leaf.shape:
            wished = to_torch_layout(np.empty(leaf.shape)).shape if path[-1] == "kernel" else leaf.shape
            raise UserError(f"{file} has {name} of shape {tensor.shape}; its {CONFIG_FILE} asks for {wished}")
        filled[path] = jnp.asarray(value)
    nnx.replace_by_pure_dict(state, _unflatten(filled))
    return state


def _flatten(tree: Mapping[Any, Any], prefix: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    flat: dict[tuple[str | int, ...], Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return flat


def _unflatten(flat: Mapping[tuple[str | int, ...], Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
