"""Results of a shard besides its files: counts, checksums, rejects, and exact sums."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.layout import Layout
from schemas.manifest import RESULTS_NAME, ChannelStatistics, Manifest, Reconstruction, ShardInfo
from schemas.pixels import from_uint8
from schemas.storage.directory import Directory

PEAK = 255.0
DONE = "done"  # folder of the done-markers


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# in place of an exception, where the VAE gave no finite numbers; no decoder raises that
NOT_FINITE = "NotFinite"


class Reject(_Frozen):
    """An item left out. `exception` is the class raised or `NOT_FINITE`, `size` is in bytes."""

    key: str
    reason: str
    exception: str
    size: int


class ChannelSums(_Frozen):
    """Per-channel float64 sums over `positions` values of x, x squared and exp(logvar)."""

    positions: int = 0
    total: tuple[float, ...]
    squares: tuple[float, ...]
    noise: tuple[float, ...]

    @classmethod
    def of(cls, layout: Layout, tensors: Mapping[str, NDArray[Any]]) -> "ChannelSums":
        """Sums over stored tensors (n, h, w, c); images are measured in [-1, 1]."""
        values, noise = _MEASURED[layout](tensors)
        axes = (0, 1, 2)
        return cls(
            positions=int(np.prod(values.shape[:3])),
            total=tuple(values.sum(axes).tolist()),
            squares=tuple((values**2).sum(axes).tolist()),
            noise=tuple(noise.sum(axes).tolist()),
        )

    @classmethod
    def merge(cls, parts: Sequence["ChannelSums"], channels: int) -> "ChannelSums":
        """Exactly rounded sums (`math.fsum`), so that the order of the parts cannot show."""

        def sums(name: str) -> tuple[float, ...]:
            return tuple(
                math.fsum(getattr(part, name)[channel] for part in parts)
                for channel in range(channels)
            )

        return cls(
            positions=sum(part.positions for part in parts),
            total=sums("total"),
            squares=sums("squares"),
            noise=sums("noise"),
        )

    def statistics(self) -> ChannelStatistics:
        """Mean and deviation; of moments sqrt(var(mean) + E[exp(logvar)]), of posterior samples.

        Raises:
            ValueError: one is not finite.
        """
        total, squares, noise = (np.array(sums) for sums in (self.total, self.squares, self.noise))
        mean = total / self.positions
        variance = squares / self.positions - mean**2 + noise / self.positions
        std = np.sqrt(np.maximum(variance, 0.0))
        return ChannelStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _moments(
    tensors: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return tensors["mean"].astype(np.float64), np.exp(tensors["logvar"].astype(np.float64))


def _pixels(tensors: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = from_uint8(tensors["image"]).astype(np.float64)
    return values, np.zeros_like(values)


def _latents(
    tensors: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = tensors["latent"].astype(np.float64)
    return values, np.zeros_like(values)


_MEASURED = {Layout.MOMENTS: _moments, Layout.IMAGE: _pixels, Layout.LATENT: _latents}


class ErrorSums(_Frozen):
    """Squared error of reconstructed uint8 pixels: whole numbers, so sums are exact."""

    squared_error: int = 0
    values: int = 0
    records: int = 0

    @classmethod
    def of(cls, originals: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> "ErrorSums":
        """Compare two batches (n, H, W, 3)."""
        difference = originals.astype(np.int64) - decoded.astype(np.int64)
        return cls(
            squared_error=int((difference**2).sum()),
            values=difference.size,
            records=originals.shape[0],
        )

    @classmethod
    def merge(cls, parts: Sequence["ErrorSums"]) -> "ErrorSums":
        """The sum of all parts."""
        return cls(
            **{name: sum(getattr(part, name) for part in parts) for name in cls.model_fields}
        )

    def reconstruction(self) -> Reconstruction | None:
        """PSNR in dB of the mean squared error over all records; None if nothing was decoded.

        A perfect reconstruction counts as an error of one level in one value, since JSON has no
        infinity.
        """
        if not self.records:
            return None
        error = max(self.squared_error, 1) / self.values
        return Reconstruction(psnr_db=10.0 * math.log10(PEAK**2 / error), records=self.records)


class ShardResult(_Frozen):
    """A finished shard; the done-marker is this object. `items` = records written + rejects."""

    shard: int
    items: int
    files: tuple[ShardInfo, ...]  # one a split, the main one first
    rejects: tuple[Reject, ...]
    channels: ChannelSums
    errors: ErrorSums
    # those of its records, in order; None in a marker of an earlier version
    labels: tuple[int, ...] | None = None
    enlarged: int = 0  # records of images that were smaller than the resolution

    @property
    def records(self) -> int:
        """Records written to the main split."""
        return self.files[0].records


class ShardFailure(_Frozen):
    """A shard that failed for a reason the user can mend; told when all others are done."""

    shard: int
    message: str


def empty_classes(results: Sequence[ShardResult], classes: int) -> tuple[int, ...]:
    """Numbers of the classes that no record belongs to; none where not all shards know theirs."""
    seen = set[int]()
    for result in results:
        if result.labels is None:
            return ()
        seen.update(result.labels)
    return tuple(number for number in range(classes) if number not in seen)


def marker_name(work: str, shard: int) -> str:
    """Where the done-marker of a shard lies; `work` is `Settings.work`."""
    return f"{work}/{DONE}/{shard:05d}.json"


def read_marker(directory: Directory, work: str, shard: int) -> ShardResult | None:
    """A done shard's result; None without a marker, or where its files are not as described."""
    try:
        result = ShardResult.model_validate_json(directory.read(marker_name(work, shard)))
    except (FileNotFoundError, ValidationError):
        return None  # a marker is a cache; what cannot be read is made again
    intact = all(directory.matches(file.name, file.bytes, file.sha256) for file in result.files)
    return result if intact else None


def write_marker(directory: Directory, work: str, result: ShardResult) -> None:
    """Declare a shard done."""
    directory.write(marker_name(work, result.shard), result.model_dump_json() + "\n")


def remove_markers(directory: Directory, work: str) -> None:
    """Declare no shard done."""
    for name in directory.names(f"{work}/{DONE}"):
        directory.remove(f"{work}/{DONE}/{name}")


def recall_markers(directory: Directory, work: str) -> None:
    """Write the done-markers of a finished dataset again, from its results file.

    A run that makes the dataset anew then keeps the shards that are whole, and makes the others.
    """
    if directory.exists(RESULTS_NAME):
        for line in directory.read(RESULTS_NAME).splitlines():
            try:
                write_marker(directory, work, ShardResult.model_validate_json(line))
            except ValidationError:
                return  # damaged; what is not marked is made again


def drop_damaged_results(directory: Directory, manifest: Manifest) -> None:
    """Delete a results file that is not the manifest's, before a dataset is made again in part.

    Whoever believed them would merge wrong counts or statistics. Without them all shards are made
    again.
    """
    info = next((info for info in manifest.files if info.name == RESULTS_NAME), None)
    if info is None or not directory.matches(RESULTS_NAME, info.bytes, info.sha256):
        directory.remove(RESULTS_NAME)
