"""`manifest.json`: what a latent dataset is. Written last: without it, no dataset."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from schemas.errors import UserError, reason_of
from schemas.files import write_atomic
from schemas.growing import Growing
from schemas.json_text import parse_json
from schemas.layout import Layout, TensorSpec
from schemas.manifest_checks import check_empty_classes, check_tensors
from schemas.sealed import FIELD, digest_of, seal, unseal

SCHEMA_VERSION = 2  # 1 had neither `files`, `parts` nor the digest at the end
MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
SETTINGS_NAME = "settings.json"  # what `flowtrain preprocess` was asked for
MERGE_NAME = "merge.json"  # what `flowtrain data merge` was asked for
SAMPLING_NAME = ".plan.json"  # what a dataset of samples was drawn with, while it is being drawn
PIXELS = "none"  # the name of no VAE: the pixels themselves are stored
RESULTS_NAME = "shards.jsonl"  # what each shard reported when it was done, in order
# What to do about a missing and about a damaged shard, at the end of a one-line error. A damaged
# one of the right size is taken for whole when the command is repeated, so it has to go first.
REMAKE = "repeat the command in manifest.json (OUT is the directory that holds it)"
REBUILD = f"delete it and {REMAKE}"


def _within(name: str) -> str:
    """A manifest may come from anywhere, and its files are read, replaced and deleted by name."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"{name!r} is no file within the dataset's directory")
    return name


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("must not be zero")
    return value


# relative; may not leave the dataset's directory
FileName = Annotated[str, AfterValidator(_within)]


class SourceInfo(Growing):
    """The records' source. `digest` is the SHA-256 of the sorted index: keys, labels, sizes."""

    descriptor: str
    split: str
    digest: str


class VaeInfo(Growing):
    """The autoencoder that made the latents and decodes them.

    `sha256` is that of its weights file, `config_sha256` that of what its config says of the
    network (`pipelines.encoders.kl_config.VaeConfig.digest`): activation and number of groups show
    in no shape of the weights. `network` is diffusers' name of the class. Where the decoder is a
    file of its own, `sha256` is the encoder's and `decoder_sha256` the decoder's, None if it was
    not there when the images were encoded.
    """

    added = ("network", "decoder_sha256")

    id: str
    revision: str | None = None
    sha256: str
    config_sha256: str
    factor: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    scaling_factor: Annotated[float, AfterValidator(_not_zero)]
    shift_factor: float = 0.0
    # of the computation; weights are kept in float32
    dtype: Literal["float32", "bfloat16"] = "float32"
    network: Literal["AutoencoderKL", "AutoencoderTiny"] = "AutoencoderKL"
    decoder_sha256: str | None = None

    @property
    def layout(self) -> Layout:
        """The layout of records that this VAE encodes: a posterior's moments, or one latent."""
        return Layout.MOMENTS if self.network == "AutoencoderKL" else Layout.LATENT


class Normalization(Growing):
    """From stored to model scale: z = (raw - offset) * scale, one entry of each a channel."""

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

    def apply(self, raw: NDArray[np.floating]) -> NDArray[np.float32]:
        """Stored scale (..., c) to model scale, float32."""
        offset = np.asarray(self.offset, np.float32)
        scale = np.asarray(self.scale, np.float32)
        return (raw.astype(np.float32) - offset) * scale

    def undo(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        """Model scale (..., c) to stored scale, float32."""
        offset = np.asarray(self.offset, np.float32)
        scale = np.asarray(self.scale, np.float32)
        return latents.astype(np.float32) / scale + offset

    def then(self, second: "Normalization") -> "Normalization":
        """This one and then `second`, as one."""
        pairs = list(zip(self.offset, self.scale, second.offset, second.scale, strict=True))
        return Normalization(
            offset=tuple(o1 + o2 / k1 for o1, k1, o2, _ in pairs),
            scale=tuple(k1 * k2 for _, k1, _, k2 in pairs),
        )


class Counts(Growing):
    """Each item of the source is written, rejected or a duplicate; `enlarged` ones are written."""

    source: int = Field(ge=0)
    written: int = Field(ge=0)
    rejected: int = Field(ge=0)
    duplicate: int = Field(ge=0)
    enlarged: int = Field(default=0, ge=0)  # were smaller than the resolution

    added = ("enlarged",)

    @model_validator(mode="after")
    def _reconciled(self) -> Self:
        if self.source != self.written + self.rejected + self.duplicate:
            raise ValueError("counts do not add up: source != written + rejected + duplicate")
        return self


class ChannelStatistics(Growing):
    """Mean and deviation of each channel of the main split's raw tensors.

    For the moments layout the deviation is that of a posterior sample: sqrt(var(mean) +
    E[exp(logvar)]). Images are measured in [-1, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Reconstruction(Growing):
    """PSNR in dB (peak 255, uint8) of decoded stored means against the cropped originals."""

    psnr_db: float
    records: int = Field(ge=1)


class ShardInfo(Growing):
    """One finished shard file."""

    name: FileName
    split: str
    records: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str

    @model_validator(mode="after")
    def _holds_them(self) -> Self:
        if self.records > self.bytes:  # a record takes more than a byte, its key alone
            raise ValueError(f"{self.records} records in {self.bytes} bytes")
        return self


class FileInfo(Growing):
    """One of the other files of a dataset."""

    name: FileName
    bytes: int = Field(ge=0)
    sha256: str


class PartInfo(Growing):
    """A dataset that was merged into this one. `digest` is `Manifest.digest()` of it."""

    digest: str
    source: SourceInfo
    counts: Counts
    seed: int
    command: str


class Manifest(Growing):
    """`manifest.json`: everything about a latent dataset but its records, in the order on disk."""

    schema_version: int = SCHEMA_VERSION
    layout: Layout
    split: str
    flips: bool = False
    resolution: int = Field(ge=1)
    crop: str
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    tensors: dict[str, TensorSpec]
    classes: tuple[str, ...] = Field(min_length=1)
    # numbers of those that no record belongs to, where that is known
    empty_classes: tuple[int, ...] = ()
    source: SourceInfo
    vae: VaeInfo | None = None
    # set when the tensors are already in the model's scale
    normalization: Normalization | None = None
    counts: Counts
    channels: ChannelStatistics
    reconstruction: Reconstruction | None = None
    shards: tuple[ShardInfo, ...]
    files: tuple[FileInfo, ...] = ()  # by name; all but the shards, the manifest and the sealed
    # files that vouch for themselves (`schemas.sealed`) and decide no byte here
    sealed: tuple[FileName, ...] = ()
    parts: tuple[PartInfo, ...] | None = None  # what a merged dataset was merged from
    seed: int
    sampling: dict[str, Any] | None = None  # how a dataset of generated samples was made
    command: str
    versions: dict[str, str]

    added = ("empty_classes",)

    # as it was read, where we would write it otherwise
    _text: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_empty_classes(self.empty_classes, len(self.classes))
        statistics = {len(self.channels.mean), len(self.channels.std)}
        check_tensors(self.layout, self.tensors, statistics)
        wanted = self._told_shape()
        if wanted not in (None, self.shape):
            raise ValueError(
                f"tensors of shape {self.shape}, but {self.resolution} pixels and the VAE give "
                f"{wanted}"
            )
        return self

    def _told_shape(self) -> tuple[float, float, int] | None:
        """The shape that resolution and VAE give; None where neither tells it."""
        if self.vae is None:
            side = self.resolution
            return (side, side, 3) if self.layout == Layout.IMAGE else None
        side = self.resolution / self.vae.factor
        return side, side, self.vae.latent_channels

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

    @property
    def generated(self) -> bool:
        """Whether a model made the records, which are then in its scale (`normalization`)."""
        return self.normalization is not None

    def stored_normalization(self) -> Normalization:
        """From raw to stored values: samples are stored in their model's scale, others raw."""
        return self.normalization or Normalization.identity(self.shape[2])

    def model_normalization(self) -> Normalization:
        """Normalisation by the VAE: z = (raw - shift) * scaling; pixels are left alone."""
        if self.normalization is not None:
            return self.normalization
        channels = self.shape[2]
        if self.vae is None:
            return Normalization(offset=(0.0,) * channels, scale=(1.0,) * channels)
        return Normalization(
            offset=(self.vae.shift_factor,) * channels, scale=(self.vae.scaling_factor,) * channels
        )

    def channel_normalization(self) -> Normalization:
        """Normalisation by measured statistics: zero mean and unit deviation of each channel."""
        return Normalization(
            offset=self.channels.mean,
            scale=tuple(1.0 / max(std, 1e-6) for std in self.channels.std),
        )

    def canonical(self) -> str:
        """The text under the digest: as it was read, or a new manifest's fields in order.

        The same manifest always gives the same bytes. What another commit wrote in another way
        keeps its own.
        """
        if self._text is not None:
            return self._text
        return self.model_dump_json(indent=2) + "\n"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; a copy with other fields is a new manifest with a text of its own."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy._text = None
        return copy

    def to_json(self) -> str:
        """The content of the file: the canonical text with its digest as the last field."""
        return seal(self.canonical())

    def digest(self) -> str:
        """SHA-256 of the canonical text: the dataset's identity, since every checksum is in it."""
        return digest_of(self.canonical())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically. Call it last."""
    write_atomic(directory / MANIFEST_NAME, manifest.to_json())


def read_manifest(directory: Path) -> Manifest:
    """Read and validate the manifest of a local dataset directory.

    Raises:
        UserError: no directory, no manifest (the dataset is unfinished), or what `parse_manifest`
            refuses.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such dataset directory; make it with `flowtrain preprocess`"
        )
    if not path.is_file():
        raise unfinished(str(directory))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({reason_of(error)}); mend that and repeat the command"
        ) from None
    return parse_manifest(content, str(path))


def unfinished(directory: str) -> UserError:
    """What a directory without a manifest is told."""
    return UserError(
        f"{directory}: no {MANIFEST_NAME}, so this is not a finished dataset; "
        "repeat the `flowtrain` command that began it to finish it"
    )


def parse_manifest(content: str | bytes, where: str) -> Manifest:
    """Validate the content of a `manifest.json`; `where` names it in errors.

    The digest of what comes back is that of the bytes given, whichever commit wrote them.

    Raises:
        UserError: another schema version, a damaged file (a single flipped bit is enough), or
            fields that do not fit.
    """
    data = content.encode() if isinstance(content, str) else content
    rebuild = "rebuild the dataset with the command that made it"
    try:
        values = parse_json(data)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: not a readable manifest; {rebuild}") from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version} is newer than {SCHEMA_VERSION}, which this release "
            "reads; "
            "upgrade flowtrain"
        )
    if version < SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, but this release reads {SCHEMA_VERSION}; {rebuild}"
        )
    try:
        text = unseal(data)
    except ValueError as error:
        raise UserError(f"{where}: the manifest is damaged ({error}); {rebuild}") from None
    values.pop(FIELD)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(f"{where}: {field}: {first['msg']}; {rebuild}") from None
    if manifest.canonical() != text:
        manifest._text = text
    return manifest
