"""Tiny autoencoders in their author's layout: NAME_encoder and NAME_decoder, no config."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.errors import UserError

_HALF = re.compile(r"(?P<name>.+)_(?P<half>encoder|decoder)\.(?P<format>safetensors|pth)")
_LAYER = re.compile(r"(?P<number>\d+)\.(?P<rest>.+)")
# In the author's decoder the clamp of the latent is layer 0; here, as in diffusers, it is no layer.
_LAYERS_BEFORE = {"encoder": 0, "decoder": 1}


@dataclass(frozen=True)
class Halves:
    """The two weight files; `decoder` is None where there is only an encoder."""

    encoder: Path
    decoder: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are there, the encoder first."""
        return (self.encoder,) if self.decoder is None else (self.encoder, self.decoder)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are there, by the names in `pipelines.encoders.tiny.AutoencoderTiny`."""
        return ("encoder",) if self.decoder is None else ("encoder", "decoder")


def find_halves(directory: Path) -> Halves | None:
    """The files of a tiny autoencoder in a directory; None where there is none in this layout.

    Where a file is there in both formats the safetensors is taken.

    Raises:
        UserError: a decoder without its encoder, or several autoencoders.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.iterdir()):  # .pth before .safetensors, which replaces it
        match = _HALF.fullmatch(path.name)
        if match is not None and path.is_file():
            found.setdefault(match["name"], {})[match["half"]] = path
    if not found:
        return None
    if len(found) > 1:
        raise UserError(
            f"{directory} holds several tiny autoencoders ({', '.join(found)}); give a directory "
            "that holds one"
        )
    ((name, files),) = found.items()
    if "encoder" not in files:
        raise UserError(
            f"{directory} has {files['decoder'].name} but no {name}_encoder.safetensors; put it "
            "there"
        )
    return Halves(files["encoder"], files.get("decoder"))


def layer_name(half: str, name: str) -> str:
    """diffusers' name of a tensor: ('decoder', '1.weight') -> 'decoder.layers.0.weight'.

    A name that is numbered otherwise stays recognisable, and fits no place in the network.
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return f"{half}.{name}"
    number = int(match["number"]) - _LAYERS_BEFORE[half]
    return f"{half}.layers.{number}.{match['rest']}"


def join_halves(tensors: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of both files, by file, under diffusers' names."""
    return {
        layer_name(half, name): tensor
        for half, content in tensors.items()
        for name, tensor in content.items()
    }
