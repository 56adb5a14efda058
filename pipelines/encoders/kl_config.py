"""`config.json` of diffusers' AutoencoderKL, checked; needs the standard library only."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from schemas.errors import UserError

CLASS = "AutoencoderKL"
DOWN_BLOCK = "DownEncoderBlock2D"
UP_BLOCK = "UpDecoderBlock2D"
MOST_CHANNELS, MOST_BLOCKS = 1 << 16, 16  # many times those of any autoencoder
ACTIVATIONS = ("gelu", "mish", "relu", "silu", "swish")  # `pipelines.encoders.kl` has the functions

# What JSON may hold where a default is of the type on the left.
_JSON_TYPES: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    tuple: (list, tuple),
}


@dataclass(frozen=True)
class VaeConfig:
    """The part of a diffusers AutoencoderKL `config.json` that decides what the network computes.

    The defaults are those of diffusers, which leaves out of older files what was added later.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side: every block but the last halves the resolution."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VaeConfig":
        """Read the contents of a diffusers `config.json`.

        Keys that do not change the network (`sample_size`, `force_upcast`, ...) are passed over. A
        null value means diffusers' default, and for `shift_factor` no shift.

        Raises:
            UserError: another class than AutoencoderKL, an unknown block type or activation, or
                sizes that do not fit each other.
        """
        kind = values.get("_class_name") or CLASS
        if kind != CLASS:
            raise UserError(f"the VAE's config.json is of a {kind}, not of an {CLASS}")
        if not values.get("_class_name") and not values.get("block_out_channels"):
            raise UserError(
                "the VAE's config.json has no _class_name and no block_out_channels: it is not "
                "diffusers'"
            )
        known = {
            key: values[key] for key in cls.__dataclass_fields__ if values.get(key) is not None
        }
        for key, value in known.items():
            if not isinstance(value, _JSON_TYPES[type(getattr(cls, key))]):
                raise UserError(
                    f"the VAE's config.json has {key} {value!r}, which is of the wrong type"
                )
        if "block_out_channels" in known:
            known["block_out_channels"] = tuple(known["block_out_channels"])
        for key in ("scaling_factor", "shift_factor"):
            if key in known:
                known[key] = _finite(key, known[key])
        config = cls(**known)
        _check_block_types(values, len(config.block_out_channels))
        _check_sizes(config)
        return config

    def digest(self) -> str:
        """SHA-256 (hex) of all fields as JSON with sorted keys: of the network, not of the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json` that diffusers (and `from_dict`) reads back."""
        blocks = len(self.block_out_channels)
        return {
            "_class_name": CLASS,
            "down_block_types": [DOWN_BLOCK] * blocks,
            "up_block_types": [UP_BLOCK] * blocks,
            **asdict(self),
            "block_out_channels": list(self.block_out_channels),
        }


def _finite(key: str, value: float) -> float:
    """A factor of latents, which are divided by the first and stored as finite numbers."""
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or (key == "scaling_factor" and number <= 0):
        raise UserError(
            f"the VAE's config.json has {key} {number:g}; it must be a number"
            f"{' above 0' if key == 'scaling_factor' else ''}"
        )
    return number


def _check_block_types(values: Mapping[str, Any], blocks: int) -> None:
    for key, supported in (
        ("down_block_types", DOWN_BLOCK),
        ("up_block_types", UP_BLOCK),
    ):
        types = values.get(key) or [supported] * blocks
        unknown = sorted(set(types) - {supported})
        if unknown:
            raise UserError(
                f"the VAE's config.json has {key} {', '.join(unknown)}; only {supported} is "
                "supported"
            )
        if len(types) != blocks:
            raise UserError(
                f"the VAE's config.json has {len(types)} {key} for {blocks} block_out_channels"
            )


def _check_sizes(config: VaeConfig) -> None:
    if config.act_fn not in ACTIVATIONS:
        raise UserError(
            f"the VAE's config.json has act_fn {config.act_fn!r}; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    positive = (
        "in_channels",
        "out_channels",
        "layers_per_block",
        "latent_channels",
        "norm_num_groups",
    )
    for key in positive:
        value = getattr(config, key)
        if not 1 <= value <= MOST_CHANNELS:
            raise UserError(
                f"the VAE's config.json has {key} {value!r}; it must be 1 to {MOST_CHANNELS}"
            )
    if not 1 <= len(config.block_out_channels) <= MOST_BLOCKS:
        raise UserError(
            f"the VAE's config.json has {len(config.block_out_channels)} block_out_channels; it "
            f"must have 1 to {MOST_BLOCKS}"
        )
    for channels in config.block_out_channels:
        fits = isinstance(channels, int) and 1 <= channels <= MOST_CHANNELS
        if not fits or channels % config.norm_num_groups:
            raise UserError(
                f"the VAE's config.json has block_out_channels {list(config.block_out_channels)}; "
                f"each must be a multiple of norm_num_groups {config.norm_num_groups}"
            )
