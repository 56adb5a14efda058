"""From what was typed to what will be done: names resolved, inputs looked at, nothing written."""

import re
from dataclasses import dataclass

from pipelines.dataset.build import ShardedBuild
from pipelines.encoders.describe import describe_vae
from pipelines.images import CROPS, ImageError
from pipelines.preprocess.finish import check_quality
from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.index import Index, index_of
from pipelines.preprocess.settings import Settings, current_versions, read_settings
from pipelines.sources import Source, check_is_no_source, open_source
from schemas.errors import UserError, reason_of
from schemas.manifest import (
    MANIFEST_NAME,
    SETTINGS_NAME,
    Manifest,
    SourceInfo,
    VaeInfo,
)
from schemas.storage.directory import GONE, WORK, Directory, open_directory, reported
from schemas.storage.paths import absolute

SHARD_RECORDS = 1000  # in a shard, about, when --shards is left out
MAX_SHARDS = 1024


@dataclass(frozen=True)
class Request:
    """The arguments of `preprocess`. `shards`, `vae_dtype` and `vae_revision` None leave the choice
    to us.
    """

    source: str
    out: str
    split: str
    resolution: int
    crop: str
    vae: str
    vae_revision: str | None
    vae_dtype: str | None
    flips: bool
    shards: int | None
    batch_size: int
    seed: int
    max_bad_fraction: float
    min_psnr: float


@dataclass(frozen=True)
class Plan:
    """A request that can be carried out. `remarks` is what to tell of the source, a line each."""

    request: Request
    directory: Directory
    settings: Settings
    index: Index
    remarks: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the directory holds the finished dataset already."""
        with reported(self.directory):
            return self.directory.exists(MANIFEST_NAME)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors of all records and splits; keys and framing come on top."""
        one = sum(spec.nbytes for spec in self.settings.tensors.values())
        return one * self.settings.records * len(self.settings.splits)

    @property
    def build(self) -> ShardedBuild:
        """What makes the directory this dataset."""
        return dataset_build(self.directory, self.settings)

    def accept(self, manifest: Manifest) -> None:
        """Whether a finished dataset keeps the thresholds of this request. Raises `UserError`."""
        check_quality(manifest, self.request.max_bad_fraction, self.request.min_psnr)

    def finished_manifest(self) -> Manifest | None:
        """The manifest, when the dataset is finished and no file of it is missing or cut.

        Raises:
            UserError: it is finished, but does not keep the thresholds of this request.
        """
        with reported(self.directory):
            return self.build.finished(self.accept)

    @property
    def cluttered(self) -> bool:
        """Whether a run that was killed has left something to clear away."""
        with reported(self.directory):
            return any(name == WORK or name.startswith(GONE) for name in self.directory.names())


def make_plan(request: Request) -> Plan:
    """Resolve a request and check all that can be checked before work begins. Writes nothing.

    Raises:
        UserError: anything wrong with the source, the VAE, the numbers or the output directory.
    """
    directory = _output_directory(request)
    source = open_source(request.source, request.split)
    with reported(directory):
        begun = read_settings(directory)
    vae = _described_vae(request, begun)
    try:
        index = index_of(source, request.seed)
        classes = source.classes
    except OSError as error:
        reason = reason_of(error)
        raise UserError(
            f"{source.descriptor}: cannot be listed ({reason}); mend that and repeat the command"
        ) from error
    settings = Settings.model_validate(
        {
            "source": SourceInfo(
                descriptor=source.descriptor, split=request.split, digest=index.digest
            ),
            "source_state": index.state,
            "records": index.records,
            "duplicates": index.duplicates,
            "classes": classes,
            "resolution": request.resolution,
            "crop": request.crop,
            "vae": vae,
            "flips": request.flips,
            "shards": _shard_count(request, source, index.records),
            "batch_size": request.batch_size,
            "seed": request.seed,
            "versions": current_versions(),
        }
    )
    with reported(directory):
        dataset_build(directory, settings).check_ownership()
        new = not directory.exists(SETTINGS_NAME)
    if new:
        _check_readable(source, index, settings)
    return Plan(request, directory, settings, index, source.remarks())


def _output_directory(request: Request) -> Directory:
    """Where the dataset goes, by what was typed alone; the source is not opened."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", request.split):
        raise UserError(
            f"--split {request.split!r}: letters, digits and underscores only; it is part of file "
            "names"
        )
    if not request.source or not request.out:
        raise UserError("SOURCE and OUT must not be empty; is a variable of your shell not set?")
    check_is_no_source(request.out)
    directory = open_directory(request.out)
    if directory.root.startswith(f"{absolute(request.source).rstrip('/')}/"):
        raise UserError(
            f"{request.out} lies in {request.source}, and would be part of it; choose a directory "
            "outside"
        )
    return directory


def _described_vae(request: Request, begun: Settings | None) -> VaeInfo | None:
    """The VAE of a request, which must fit the resolution."""
    # A second command need not ask JAX for the type again.
    chosen = None if begun is None or begun.vae is None else begun.vae.dtype
    found = describe_vae(request.vae, request.vae_revision, request.vae_dtype or chosen)
    vae = _begun_with(begun, found)
    if vae is not None and request.resolution % vae.factor:
        lower = request.resolution // vae.factor * vae.factor
        upper = lower + vae.factor
        fitting = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"--resolution {request.resolution} is not divisible by {vae.factor}, the factor of "
            f"the VAE {request.vae}; take {fitting}"
        )
    return vae


def _shard_count(request: Request, source: Source, records: int) -> int:
    usual = min(max(1, round(records / SHARD_RECORDS)), MAX_SHARDS)
    shards = request.shards or usual
    if shards > records:
        raise UserError(
            f"--shards {shards} is more than the {records} images of {source.descriptor}; take "
            "fewer"
        )
    return shards


def _begun_with(begun: Settings | None, vae: VaeInfo | None) -> VaeInfo | None:
    """The VAE with the decoder that a dataset was begun with: it decides no byte of a record, and
    may come or go.
    """
    if begun is None or begun.vae is None or vae is None or begun.vae.sha256 != vae.sha256:
        return vae
    return vae.model_copy(update={"decoder_sha256": begun.vae.decoder_sha256})


def _check_readable(source: Source, index: Index, settings: Settings) -> None:
    """Before anything is written: at least one image of the source must be usable."""
    reason = ""
    for item in index.items():
        try:
            CROPS[settings.crop](source.read(item).pixels, settings.resolution)
            return
        except ImageError as error:
            reason = reason or f"{item.key}: {error.reason}"
        except OSError as error:
            reason = reason or f"{item.key}: {reason_of(error)}"
    raise UserError(
        f"{source.descriptor}: none of its {index.records} images can be used (for one, {reason})"
    )
