"""`manifest.json`: what a latent dataset is, written last and atomically. No manifest, no dataset."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.layout import Layout, TensorSpec

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
# What to do about a missing and about a damaged shard, at the end of a one-line error. A damaged one of the right size
# is taken for whole when the command is repeated, so it has to go first.
REMAKE = "repeat the command in manifest.json (OUT is the directory that holds it)"
REBUILD = f"delete it and {REMAKE}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceInfo(_Frozen):
    """Where the records came from. `digest` is the SHA-256 of the sorted index (keys, labels, sizes)."""

    descriptor: str
    split: str
    digest: str


class VaeInfo(_Frozen):
    """The VAE that made the latents and decodes them. `sha256` is that of its weights file."""

    id: str
    revision: str | None = None
    sha256: str
    factor: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    scaling_factor: float
    shift_factor: float = 0.0


class Normalization(_Frozen):
    """From stored to model scale, per channel: z = (raw - offset) * scale. Both have one entry a channel."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.offset) != len(self.scale) or not self.offset:
            raise ValueError("offset and scale need one entry a channel")
        if any(value == 0 for value in self.scale):
            raise ValueError("scale must not be zero")
        return self

    @classmethod
    def identity(cls, channels: int) -> Self:
        """Leaves everything as it is."""
        return cls(offset=(0.0,) * channels, scale=(1.0,) * channels)

    def then(self, second: "Normalization") -> "Normalization":
        """This one and then `second`, as one."""
        pairs = list(zip(self.offset, self.scale, second.offset, second.scale, strict=True))
        return Normalization(
            offset=tuple(o1 + o2 / k1 for o1, k1, o2, _ in pairs), scale=tuple(k1 * k2 for _, k1, _, k2 in pairs)
        )


class Counts(_Frozen):
    """Every item of the source is in exactly one of the last three."""

    source: int = Field(ge=0)
    written: int = Field(ge=0)
    rejected: int = Field(ge=0)
    duplicate: int = Field(ge=0)

    @model_validator(mode="after")
    def _reconciled(self) -> Self:
        if self.source != self.written + self.rejected + self.duplicate:
            raise ValueError("counts do not add up: source != written + rejected + duplicate")
        return self


class ChannelStatistics(_Frozen):
    """Per-channel mean and standard deviation of the raw tensors over all records and positions of the main split.

    For the moments layout the deviation is that of a posterior sample: sqrt(var(mean) + E[exp(logvar)]).
    Images are measured in [-1, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Reconstruction(_Frozen):
    """PSNR in dB (peak 255, over uint8 pixels) of decoded stored means against the cropped originals."""

    psnr_db: float
    records: int = Field(ge=1)


class ShardInfo(_Frozen):
    """One finished shard file."""

    name: str
    split: str
    records: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(_Frozen):
    """The card of a latent dataset (DESIGN: the latent dataset). Field order is the order on disk."""

    schema_version: int = SCHEMA_VERSION
    layout: Layout
    split: str
    flips: bool = False
    resolution: int = Field(ge=1)
    crop: str
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    tensors: dict[str, TensorSpec]
    classes: tuple[str, ...] = Field(min_length=1)
    source: SourceInfo
    vae: VaeInfo | None = None
    normalization: Normalization | None = None  # set when the tensors are already in the model's scale
    counts: Counts
    channels: ChannelStatistics
    reconstruction: Reconstruction | None = None
    shards: tuple[ShardInfo, ...]
    seed: int
    sampling: dict[str, Any] | None = None  # how a dataset of generated samples was made
    command: str
    versions: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the stored tensors."""
        height, width, channels = next(iter(self.tensors.values())).shape
        return height, width, channels

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names in order, the main one first."""
        return (self.split, f"{self.split}_flip") if self.flips else (self.split,)

    def split_shards(self, split: str) -> tuple[ShardInfo, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def model_normalization(self) -> Normalization:
        """Normalisation by the VAE's own scaling and shift: z = (raw - shift) * scaling; pixels are left alone."""
        if self.normalization is not None:
            return self.normalization
        channels = self.shape[2]
        if self.vae is None:
            return Normalization(offset=(0.0,) * channels, scale=(1.0,) * channels)
        return Normalization(offset=(self.vae.shift_factor,) * channels, scale=(self.vae.scaling_factor,) * channels)

    def channel_normalization(self) -> Normalization:
        """Normalisation by the measured statistics: zero mean and unit deviation in each channel."""
        return Normalization(offset=self.channels.mean, scale=tuple(1.0 / max(std, 1e-6) for std in self.channels.std))

    def to_json(self) -> str:
        """Canonical text: the same manifest always gives the same bytes."""
        return self.model_dump_json(indent=2) + "\n"

    def digest(self) -> str:
        """SHA-256 of the canonical text: the identity of the dataset, since it holds every shard's checksum."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically. Call it last."""
    write_atomic(directory / MANIFEST_NAME, manifest.to_json())


def read_manifest(directory: Path) -> Manifest:
    """Read and validate the manifest of a dataset directory.

    Raises:
        UserError: no directory, no manifest (the dataset is unfinished), a newer schema, or a damaged file.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise UserError(f"{directory}: no such dataset directory; make it with `flowtrain preprocess`")
    if not path.is_file():
        raise UserError(
            f"{directory}: no {MANIFEST_NAME}, so this is not a finished dataset; "
            "repeat the `flowtrain preprocess` command that began it to finish it"
        )
    try:
        content = json.loads(path.read_text())
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{path}: not a readable manifest; rebuild the dataset with `flowtrain preprocess`") from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, which this release reads; "
            "upgrade flowtrain"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(f"{path}: {where}: {first['msg']}; rebuild the dataset with `flowtrain preprocess`") from None
