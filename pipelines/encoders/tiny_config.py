"""The network of a tiny autoencoder (TAESD's family), by its config or its tensor shapes.

Two layouts are in use. diffusers' `AutoencoderTiny` is a directory with `config.json` and one
safetensors file. The author's own (github.com/madebyollin/taesd) is two files without a config,
`NAME_encoder` and `NAME_decoder`, whose tensors are numbered by the layers of a
`torch.nn.Sequential`; there the shapes say all that differs between variants. Needs only the
standard library.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemas.errors import UserError

CLASS = "AutoencoderTiny"
ACTIVATIONS = ("gelu", "mish", "relu", "silu", "swish")
MOST_CHANNELS = 4096
ENCODER_BLOCKS = (1, 3, 3, 3)
DECODER_BLOCKS = (3, 3, 3, 1)

# Variants of the author's own layout, by latent channels and by whether the blocks at the lowest
# resolution pool.
VARIANTS: dict[tuple[int, bool], str] = {
    (4, False): "TAESD and TAESDXL",
    (16, False): "TAESD3 and TAEF1",
    (32, True): "TAEF2",
}
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class TinyConfig:
    """What decides an `AutoencoderTiny`'s network: fields of its `config.json`, and `pool`.

    The defaults are diffusers'. `pool` is FLUX.2's: a branch over groups in every block of the
    lowest resolution, for which diffusers 0.42 has no name.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = ENCODER_BLOCKS
    num_decoder_blocks: tuple[int, ...] = DECODER_BLOCKS
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    pool: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side; stages after the first halve the resolution."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TinyConfig":
        """Read the contents of a diffusers `config.json` of an `AutoencoderTiny`.

        Keys that do not change the network (`latent_magnitude`, `force_upcast`, ...) are passed
        over.

        Raises:
            UserError: values of the wrong type, an unknown activation, another way to enlarge than
                the nearest neighbour by two, or sizes that do not fit each other.
        """
        for key, supported in (("upsample_fn", "nearest"), ("upsampling_scaling_factor", 2)):
            value = values.get(key)
            if value is not None and value != supported:
                raise UserError(
                    f"the autoencoder's config.json has {key} {value!r}; only {supported!r} is "
                    "supported"
                )
        known: dict[str, Any] = {}
        for key, field in cls.__dataclass_fields__.items():
            value = values.get(key)
            if value is not None:
                known[key] = _typed(key, value, field.default)
        config = cls(**known)
        _check(config)
        return config

    @classmethod
    def from_encoder(cls, shapes: Shapes, where: str) -> "TinyConfig":
        """The network whose encoder, in the author's own layout, has tensors of these shapes.

        Args:
            shapes: name to shape in PyTorch's order of axes, (out, in, height, width) of a
                convolution.
            where: names the file in errors.

        Raises:
            UserError: no encoder of a known variant.
        """
        numbers = [int(name.partition(".")[0]) for name in shapes if re.fullmatch(r"\d+\..+", name)]
        last = f"{max(numbers, default=0)}.weight"
        if len(numbers) != len(shapes) or "0.weight" not in shapes or last not in shapes:
            raise UserError(
                f"{where} is no encoder of a tiny autoencoder: its layers are not numbered from "
                "0.weight"
            )
        if len(shapes[last]) != 4:
            raise UserError(
                f"{where} is no encoder of a tiny autoencoder: its {last} is no convolution"
            )
        channels = shapes[last][0]
        pool = any(".pool." in name for name in shapes)
        if (channels, pool) not in VARIANTS:
            known = ", ".join(f"{count} ({name})" for (count, _), name in VARIANTS.items())
            raise UserError(
                f"{where} has {channels} latent channels {'with' if pool else 'without'} pooling "
                f"blocks, which is no known variant; known are {known}"
            )
        return cls(latent_channels=channels, pool=pool)

    def digest(self) -> str:
        """SHA-256 (hex) of the class and all fields as JSON with sorted keys."""
        content = {"_class_name": CLASS, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A `config.json` that `from_dict` reads back, and diffusers too where `pool` is False."""
        content = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return {
            "_class_name": CLASS,
            "upsample_fn": "nearest",
            "upsampling_scaling_factor": 2,
            **content,
        }


def _typed(key: str, value: Any, default: Any) -> Any:
    """A value in the default's type: lists of whole numbers become tuples, whole numbers floats."""
    if isinstance(default, tuple):
        right = isinstance(value, list | tuple) and all(type(entry) is int for entry in value)
        value = tuple(value) if right else value
    elif isinstance(default, bool):
        right = isinstance(value, bool)
    elif isinstance(default, float):
        right = type(value) in (int, float)
        value = float(value) if right else value
    else:
        right = type(value) is type(default)
    if not right:
        raise UserError(
            f"the autoencoder's config.json has {key} {value!r}, which is of the wrong type"
        )
    return value


def _check(config: TinyConfig) -> None:
    _check_values(config)
    _check_stages(config)


def _check_values(config: TinyConfig) -> None:
    if config.act_fn not in ACTIVATIONS:
        raise UserError(
            f"the autoencoder's config.json has act_fn {config.act_fn!r}; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    for key in ("in_channels", "out_channels"):
        if getattr(config, key) != 3:
            raise UserError(
                f"the autoencoder's config.json has {key} {getattr(config, key)}; only 3 is "
                "supported"
            )
    if not 0 < config.latent_channels <= MOST_CHANNELS:
        raise UserError(
            f"the autoencoder's config.json has latent_channels {config.latent_channels}; it must "
            f"be 1 to {MOST_CHANNELS}"
        )
    if not math.isfinite(config.scaling_factor) or config.scaling_factor <= 0:
        raise UserError(
            f"the autoencoder's config.json has scaling_factor {config.scaling_factor}; it must be "
            "a number above 0"
        )
    if not math.isfinite(config.shift_factor):
        raise UserError(
            f"the autoencoder's config.json has shift_factor {config.shift_factor}; it must be a "
            "number"
        )


def _check_stages(config: TinyConfig) -> None:
    stages = len(config.num_encoder_blocks)
    for side in ("encoder", "decoder"):
        widths: tuple[int, ...] = getattr(config, f"{side}_block_out_channels")
        blocks: tuple[int, ...] = getattr(config, f"num_{side}_blocks")
        if len(widths) != stages or len(blocks) != stages or not stages or min(blocks) < 0:
            raise UserError(
                f"the autoencoder's config.json has {side}_block_out_channels {list(widths)} and "
                f"num_{side}_blocks {list(blocks)}; each needs one entry a stage, as many as "
                "num_encoder_blocks"
            )
        # between stages there is no layer that could change the width
        if len(set(widths)) > 1 or widths[0] < 1:
            raise UserError(
                f"the autoencoder's config.json has {side}_block_out_channels {list(widths)}; all "
                "must be the same"
            )
