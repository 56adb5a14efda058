"""Everything that decides the bytes of a dataset, in one frozen object.

It is written down before the first shard, and claims the directory
(`pipelines.preprocess.identity`).
"""

import shlex
from typing import Any

from pydantic import Field, ValidationError

from pipelines.dataset.build import identity_key
from schemas.errors import UserError
from schemas.growing import Growing
from schemas.json_text import parse_object
from schemas.layout import Layout, TensorSpec, layout_tensors
from schemas.manifest import PIXELS, SETTINGS_NAME, SourceInfo, VaeInfo
from schemas.sealed import unseal
from schemas.storage.directory import WORK, Directory
from schemas.text import differing
from schemas.tfds_metadata import shard_name
from schemas.versions import installed_version

_PACKAGES = ("flowtrain", "apache-beam", "array-record", "flax", "jax", "jaxlib", "numpy", "pillow")


class Settings(Growing):
    """The settings of one dataset, resolved: defaults filled in, names made absolute, files
    digested.
    """

    source: SourceInfo
    # `Index.state`: guards against mixed images, and is no part of what the dataset is
    source_state: str
    records: int = Field(ge=1)  # distinct keys in the source, good or bad
    duplicates: int = Field(ge=0)
    classes: tuple[str, ...] = Field(min_length=1)
    resolution: int = Field(ge=1)
    crop: str
    vae: VaeInfo | None
    flips: bool
    shards: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seed: int = Field(ge=0)
    versions: dict[str, str]

    @property
    def layout(self) -> Layout:
        """What a record holds."""
        return Layout.IMAGE if self.vae is None else self.vae.layout

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a stored tensor."""
        if self.vae is None:
            return self.resolution, self.resolution, 3
        side = self.resolution // self.vae.factor
        return side, side, self.vae.latent_channels

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors of a record."""
        return layout_tensors(self.layout, self.shape)

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names, the main one first; the second one holds the mirrored images."""
        split = self.source.split
        return (split, f"{split}_flip") if self.flips else (split,)

    @property
    def work(self) -> str:
        """Folder of a run in progress, named by a digest of these settings.

        So a run with other settings finds none of its markers.
        """
        return f"{WORK}/{identity_key(self.model_dump_json())}"

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Rows of the index, start and stop, that make a shard."""
        return shard * self.records // self.shards, (shard + 1) * self.records // self.shards

    def shard_files(self, shard: int) -> tuple[str, ...]:
        """File names of a shard, one a split."""
        return tuple(shard_name(split, shard, self.shards) for split in self.splits)

    def command(self) -> str:
        """The command that makes this dataset again, in full; it does not depend on where OUT is.

        The thresholds are not in it: they decide whether there is a dataset, not one byte of it.
        """
        options: dict[str, Any] = {
            "split": self.source.split,
            "resolution": self.resolution,
            "crop": self.crop,
            **({"vae": PIXELS} if self.vae is None else _vae_options(self.vae)),
            "shards": self.shards,
            "batch-size": self.batch_size,
            "seed": self.seed,
        }
        words = ["flowtrain", "preprocess", self.source.descriptor, "OUT"]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return shlex.join([*words, *(["--flips"] if self.flips else [])])


def _vae_options(vae: VaeInfo) -> dict[str, str]:
    revision = {} if vae.revision is None else {"vae-revision": vae.revision}
    return {"vae": vae.id, **revision, "vae-dtype": vae.dtype}


def current_versions() -> dict[str, str]:
    """Versions of what takes part in making the bytes."""
    return {name: installed_version(name) for name in _PACKAGES}


def differences(old: Settings, new: Settings) -> list[str]:
    """`field: old -> new` for every field that differs, nested ones with dots, in the order of the
    fields.
    """
    changed = differing(old.every_field(), new.every_field())
    return [f"{name}: {before} -> {after}" for name, (before, after) in changed.items()]


def read_settings(directory: Directory) -> Settings | None:
    """The settings a directory was begun with, or None where there are none.

    Raises:
        UserError: as `parse_settings`.
    """
    try:
        return parse_settings(directory.read(SETTINGS_NAME), directory.root)
    except FileNotFoundError:
        return None


def parse_settings(content: bytes, root: str) -> Settings:
    """The settings in a `settings.json`; `root` is the directory that it lies in.

    Raises:
        UserError: the file is damaged or of another release.
    """
    try:
        return Settings.model_validate(parse_object(unseal(content)))
    except (ValueError, ValidationError):
        raise UserError(
            f"{root}/{SETTINGS_NAME} is damaged or written by another release of flowtrain; "
            "choose another output directory"
        ) from None
