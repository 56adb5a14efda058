"""The files of a VAE in diffusers' layout, by name: its config and its weights."""

import re
from collections.abc import Collection
from pathlib import Path

from schemas.errors import UserError
from schemas.json_text import parse_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PIPELINE_FOLDER = "vae"  # where diffusers' pipelines keep theirs

_PICKLED = (".bin", ".pt", ".ckpt", ".pth")


def choose_weights(names: Collection[str], where: str) -> str:
    """Which of the files of a VAE holds its weights: a safetensors file or the index of several.

    diffusers' own name goes first, then diffusers' index, then a safetensors file that is the only
    one. Pickled weights are refused: reading them can run code.

    Raises:
        UserError: there is none, or several and none of diffusers' names.
    """
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{where} has several weight files ({', '.join(found)}) and no {WEIGHTS_FILE}; keep "
            f"one, or remove {CONFIG_FILE} from beside the halves of a tiny autoencoder"
        )
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        raise UserError(
            f"{where} has only pickled weights ({pickled[0]}), which can run code when read; "
            f"convert them to {WEIGHTS_FILE}"
        )
    raise UserError(f"no safetensors file in the VAE {where}")


def indexed_files(index: Path) -> tuple[str, ...]:
    """Names of the files that an index of weights lists, sorted.

    Raises:
        UserError: it is no such index, or names files elsewhere.
    """
    weight_map = read_object(index).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) and weight_map else []
    if not names or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names
    ):
        raise UserError(f"{index} is no index of safetensors files beside it; fetch it again")
    return tuple(names)


def read_object(file: Path) -> dict[str, object]:
    """A JSON object.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        return parse_object(file.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
