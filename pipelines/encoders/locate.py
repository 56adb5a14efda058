"""A VAE on disk: its directory, config, weight files and their digest. Needs no JAX.

A VAE is a directory with `config.json` and safetensors (diffusers' layout: one file, or several
under an index), or a tiny autoencoder's two files without a config
(`pipelines.encoders.tiny_files`).
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.encoders import kl_config, tiny_config
from pipelines.encoders.fetch import fetch_vae
from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.tiny_config import TinyConfig
from pipelines.encoders.tiny_files import Halves, find_halves
from pipelines.encoders.torch_file import read_torch_file
from pipelines.encoders.weight_files import (
    CONFIG_FILE,
    INDEX_FILE,
    PIPELINE_FOLDER,
    choose_weights,
    indexed_files,
    read_object,
)
from schemas.errors import UserError, reason_of
from schemas.storage.user_cache import expanded

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path(__file__).parent.parent / "assets" / "embedded-vae"

NetworkConfig = VaeConfig | TinyConfig
# By diffusers' name of the class, which a config may leave out for the first.
CONFIGS: dict[str, type[VaeConfig] | type[TinyConfig]] = {
    kl_config.CLASS: VaeConfig,
    tiny_config.CLASS: TinyConfig,
}

PTH = ".pth"  # a state dict as torch.save writes it; read without running its pickle
_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?::(?P<folder>\w[\w.-]*(?:/\w[\w.-]*)*))?"
)


@dataclass(frozen=True)
class VaeFiles:
    """A VAE on this machine. `name` finds it from any directory; `revision` is a commit."""

    name: str
    revision: str | None
    directory: Path


def find_vae(name: str, revision: str | None = None) -> VaeFiles:
    """Find a VAE, or fetch it.

    Args:
        name: "embedded"; a directory; or a hub id, `org/name` or `org/name:folder`. A directory
            goes before a hub id of the same name. Of a whole pipeline, on disk or on the hub, its
            folder `vae` is taken.
        revision: branch, tag or commit of a hub id; None for its main branch.

    Raises:
        UserError: nothing of that name can be had, or it is not on the hub and a revision is given.
    """
    if name == EMBEDDED:
        _no_revision(name, revision)
        return VaeFiles(name, None, EMBEDDED_DIRECTORY)
    path = expanded(name)
    if path.is_dir():
        _no_revision(name, revision)
        of_pipeline = path / PIPELINE_FOLDER
        if not (path / CONFIG_FILE).is_file() and (of_pipeline / CONFIG_FILE).is_file():
            path = of_pipeline
        path = path.absolute()
        return VaeFiles(str(path), None, path)
    if path.exists():
        raise UserError(
            f"the VAE {name} is a file; give the directory that holds it and its {CONFIG_FILE}, or "
            "both halves of a tiny autoencoder"
        )
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None:
        raise UserError(
            f"no such VAE directory: {name} (give a directory, a hub id like org/name or "
            f"org/name:folder, {EMBEDDED!r}, or 'none' to store pixels)"
        )
    repository = hub_id["repository"]
    directory, folder, commit = fetch_vae(repository, hub_id["folder"], revision)
    return VaeFiles(f"{repository}:{folder}" if folder else repository, commit, directory)


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise UserError(
            f"the VAE {name} has no revisions, as it is not on the hub; leave --vae-revision out"
        )


def read_vae_config(directory: Path) -> NetworkConfig:
    """The network in a VAE directory, by `config.json` or a tiny encoder's tensor shapes.

    Raises:
        UserError: neither is there, no JSON object in the config, or a network that is not
            supported.
    """
    halves = split_halves(directory)
    if halves is not None:
        return TinyConfig.from_encoder(tensor_shapes(halves.encoder), str(halves.encoder))
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise UserError(
            f"no {CONFIG_FILE} in the VAE directory {directory}; it must be in diffusers' format, "
            "or hold a tiny autoencoder's NAME_encoder.safetensors and NAME_decoder.safetensors"
        )
    values = read_object(file)
    kind = values.get("_class_name") or kl_config.CLASS
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise UserError(
            f"the VAE's config.json is of a {kind}; supported are diffusers' "
            f"{' and '.join(CONFIGS)}"
        )
    return CONFIGS[kind].from_dict(values)


def split_halves(directory: Path) -> Halves | None:
    """The two files of a tiny autoencoder; None for a directory with a config, whose word counts.

    Raises:
        UserError: as `pipelines.encoders.tiny_files.find_halves`, or the directory cannot be
            listed.
    """
    if (directory / CONFIG_FILE).is_file():
        return None
    try:
        return find_halves(directory)
    except OSError as error:
        raise UserError(
            f"cannot list the VAE directory {directory} ({reason_of(error)}); mend that"
        ) from error


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by name, of a safetensors file's header or of a `.pth` state dict.

    Raises:
        UserError: it is none, or not whole.
    """
    if file.suffix == PTH:
        return {name: tensor.shape for name, tensor in read_torch_file(file).items()}
    from safetensors import SafetensorError, safe_open

    try:
        # the header is whole and fits the length of the file
        with safe_open(file, framework="numpy") as content:
            names = list(content.keys())
            return {name: tuple(content.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); fetch it again"
        ) from error


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The weight files of a VAE directory, by name; or an encoder and, if there, its decoder.

    Raises:
        UserError: as `choose_weights`, or a file that the index names is missing.
    """
    halves = split_halves(directory)
    if halves is not None:
        return halves.files
    files = [path.name for path in directory.iterdir() if path.is_file()]
    chosen = directory / choose_weights(files, str(directory))
    if chosen.name != INDEX_FILE:
        return (chosen,)
    return tuple(directory / name for name in indexed_files(chosen))


def vae_digest(directory: Path) -> str:
    """SHA-256 (hex) of the weight file; of several, of the lines that sha256sum prints for them.

    Of a tiny autoencoder in two files it is that of the encoder, which alone made the latents.
    """
    halves = split_halves(directory)
    files = weight_files(directory) if halves is None else (halves.encoder,)
    digests = [_file_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def decoder_digest(directory: Path) -> str | None:
    """SHA-256 (hex) of the decoder, where it is a file of its own and there."""
    halves = split_halves(directory)
    return None if halves is None or halves.decoder is None else _file_digest(halves.decoder)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read the weights {path} ({reason_of(error)}); fetch them again"
        ) from error
