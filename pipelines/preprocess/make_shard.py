"""One shard, from its slice of the index to its files: a pure function of the slice, the encoder
and the settings.

Three things go on at once: threads read and decode a bounded number of images ahead, the device
encodes the batches that were begun, and the calling thread writes the records of the batch before.
Memory does not grow with the shard.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.build import ShardedBuild
from pipelines.dataset.shard_results import (
    NOT_FINITE,
    ChannelSums,
    ErrorSums,
    Reject,
    ShardFailure,
    ShardResult,
)
from pipelines.dataset.shards import ShardFile, ShardWriter
from pipelines.encoders.encode import Encoder, Tensors
from pipelines.images import CROPS, ImageError
from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.index import read_index
from pipelines.preprocess.settings import Settings, current_versions
from pipelines.sources import Item, Source, open_source
from schemas.errors import UserError, reason_of
from schemas.manifest import ShardInfo
from schemas.record import encode_record
from schemas.storage.directory import Directory

RECONSTRUCTED = 32  # records of a dataset that are decoded again to measure the reconstruction
MAX_DECODERS = 32
REMOTE_READERS = 32  # threads that read from an object store: they wait more than they work
BEGUN = 2  # batches that each device has to do while the one before them is written
_SUMS_KEPT = 1024  # of batches, before they are merged

# takes how many more were "read", "decoded", "encoded", "rejected", or "bytes"
Count = Callable[[str, int], None]


@dataclass(frozen=True)
class Slice:
    """A unit of work: a shard and the byte range of its items in the index file."""

    shard: int
    offset: int
    length: int


@dataclass(frozen=True)
class _Batch:
    """Items and their pixels (batch_size, H, W, 3); rows beyond the items are padding."""

    items: tuple[Item, ...]
    pixels: NDArray[np.uint8]


class _Cropped(NamedTuple):
    """Pixels (R, R, 3) of an image, its class, and whether it was smaller."""

    pixels: NDArray[np.uint8]
    label: int
    enlarged: bool


@dataclass
class _Tally:
    """What adds up while a shard is written."""

    count: Count
    quota: int  # records still to be reconstructed
    rejects: list[Reject] = field(default_factory=list)
    channels: list[ChannelSums] = field(default_factory=list)
    errors: list[ErrorSums] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    enlarged: int = 0

    def reject(self, item: Item, reason: str, exception: str) -> None:
        self.rejects.append(
            Reject(key=item.key, reason=reason, exception=exception, size=item.size)
        )
        self.count("rejected", 1)

    def measure(self, sums: ChannelSums) -> None:
        self.channels.append(sums)
        if len(self.channels) == _SUMS_KEPT:
            self.channels = [ChannelSums.merge(self.channels, len(sums.total))]


def make_shard(
    directory: Directory,
    settings: Settings,
    piece: Slice,
    load: Callable[[], Encoder],
    count: Count,
) -> ShardResult | ShardFailure:
    """Make a shard and leave its done-marker, unless that is there already and fits the files.

    Args:
        directory: where the dataset lies; its index has been written.
        settings: the settings of the dataset.
        piece: which shard.
        load: gives the encoder; called only when there is something to encode.
        count: is told what is done, as it is done; nothing of a shard that was there.

    Returns:
        The result, or the failure when the user can mend what went wrong (unreadable or full
        storage, wrong weights).
    """
    build = dataset_build(directory, settings)
    try:
        return build.shard(piece.shard, lambda: _make(build, settings, piece, load(), count))
    except UserError as error:
        return ShardFailure(shard=piece.shard, message=str(error))
    except OSError as error:
        return ShardFailure(shard=piece.shard, message=directory.trouble(error))


def _make(
    build: ShardedBuild, settings: Settings, piece: Slice, encoder: Encoder, count: Count
) -> ShardResult:
    if (versions := current_versions()) != settings.versions:
        other = ", ".join(
            f"{name} {versions[name]}"
            for name in versions
            if versions[name] != settings.versions[name]
        )
        raise UserError(
            f"a worker has other versions than the command ({other}); give both the same "
            "environment"
        )
    build.check_ours()
    items = read_index(build.directory, build.ready, piece.offset, piece.length)
    names = settings.shard_files(piece.shard)
    tally = _Tally(count, reconstruction_quota(piece.shard, settings.shards))
    with build.directory.staging() as folder:
        staged = [folder / name for name in names]
        written = _write(settings, encoder, items, staged, tally)
        build.check_ours()
        for path, name in zip(staged, names, strict=True):
            build.directory.publish(path, name)
    count("bytes", sum(file.bytes for file in written))
    return ShardResult(
        shard=piece.shard,
        items=written[0].records + len(tally.rejects),
        files=tuple(
            ShardInfo(name=name, split=split, **file._asdict())
            for name, split, file in zip(names, settings.splits, written, strict=True)
        ),
        rejects=tuple(sorted(tally.rejects, key=lambda reject: reject.key)),
        channels=ChannelSums.merge(tally.channels, settings.shape[2]),
        errors=ErrorSums.merge(tally.errors),
        labels=tuple(sorted(tally.labels)),
        enlarged=tally.enlarged,
    )


def _write(
    settings: Settings,
    encoder: Encoder,
    items: Iterable[Item],
    staged: Sequence[Path],
    tally: _Tally,
) -> list[ShardFile]:
    """Encode the items into the staged files, one a split."""
    source = open_source(settings.source.descriptor, settings.source.split)
    threads = reader_threads(source.descriptor)
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(path)) for path in staged]
        pool = ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)
        ahead = 2 * max(settings.batch_size, threads)
        batches = _batches(_decoded(source, items, settings, pool, ahead, tally), settings)
        for batch, views in _encoded(batches, encoder, settings.flips):
            _write_batch(settings, encoder, batch, views, writers, tally)
        return [writer.close() for writer in writers]


def reader_threads(descriptor: str) -> int:
    """Threads to read and decode a source with: one a core, or more where they wait for an object
    store.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(min(cores, MAX_DECODERS), REMOTE_READERS if "://" in descriptor else 1)


def reconstruction_quota(shard: int, shards: int) -> int:
    """How many of the first records of a shard are decoded again: `RECONSTRUCTED` in all, spread
    evenly.
    """
    return (shard + 1) * RECONSTRUCTED // shards - shard * RECONSTRUCTED // shards


def _decoded(
    source: Source,
    items: Iterable[Item],
    settings: Settings,
    pool: ThreadPoolExecutor,
    ahead: int,
    tally: _Tally,
) -> Iterator[tuple[Item, NDArray[np.uint8]]]:
    """Items with their cropped pixels, in order, up to `ahead` of them being read and decoded; bad
    ones are tallied.
    """
    crop = CROPS[settings.crop]
    classes = len(settings.classes)

    def work(item: Item) -> _Cropped | ImageError:
        try:
            pixels, label = source.read(item)
            if not 0 <= label < classes:
                return ImageError(
                    f"its label {label} is not one of the {classes} classes", "ValueError"
                )
            enlarged = min(pixels.shape[:2]) < settings.resolution
            return _Cropped(crop(pixels, settings.resolution), label, enlarged)
        except ImageError as error:
            return error

    waiting = iter(items)
    begun: deque[tuple[Item, Future[_Cropped | ImageError]]] = deque()
    while True:
        for item in islice(waiting, ahead - len(begun)):
            begun.append((item, pool.submit(work, item)))
        if not begun:
            return
        item, future = begun.popleft()
        try:
            picture = future.result()
        except (
            OSError
        ) as error:  # the disk's fault, not the image's: not to be remembered as a bad image
            raise UserError(
                f"cannot read {item.key} of {source.descriptor} ({reason_of(error)}); "
                "mend it and repeat the command"
            ) from error
        tally.count("read", 1)
        if isinstance(picture, ImageError):
            tally.reject(item, picture.reason, picture.exception)
        else:
            tally.count("decoded", 1)
            tally.enlarged += picture.enlarged
            yield replace(item, label=picture.label), picture.pixels


def _batches(
    decoded: Iterator[tuple[Item, NDArray[np.uint8]]], settings: Settings
) -> Iterator[_Batch]:
    """Batches of one shape; the last one is filled up with black."""
    while rows := list(islice(decoded, settings.batch_size)):
        pixels = np.zeros(
            (settings.batch_size, settings.resolution, settings.resolution, 3), np.uint8
        )
        for row, (_, image) in enumerate(rows):
            pixels[row] = image
        yield _Batch(tuple(item for item, _ in rows), pixels)


def _encoded(
    batches: Iterator[_Batch], encoder: Encoder, flips: bool
) -> Iterator[tuple[_Batch, list[Tensors]]]:
    """Batches with their tensors, one entry a split; later batches are begun before an earlier one
    is waited for.
    """
    begun: deque[tuple[_Batch, list[Callable[[], Tensors]]]] = deque()
    for batch in batches:
        views = [batch.pixels, batch.pixels[:, :, ::-1]] if flips else [batch.pixels]
        begun.append((batch, [encoder.start(view) for view in views]))
        if len(begun) > BEGUN * encoder.devices:
            ready, waits = begun.popleft()
            yield ready, [wait() for wait in waits]
    for ready, waits in begun:
        yield ready, [wait() for wait in waits]


def _write_batch(
    settings: Settings,
    encoder: Encoder,
    batch: _Batch,
    views: Sequence[Tensors],
    writers: Sequence[ShardWriter],
    tally: _Tally,
) -> None:
    count = len(batch.items)
    good = np.ones(count, bool)
    for tensors in views:
        for values in tensors.values():
            good &= np.isfinite(values[:count]).reshape(count, -1).all(axis=1)
    for row, item in enumerate(batch.items):
        if not good[row]:
            tally.reject(item, "its latent is not finite in float16", NOT_FINITE)
            continue
        tally.labels.add(item.label)
        for tensors, writer in zip(views, writers, strict=True):
            one = {name: values[row] for name, values in tensors.items()}
            writer.write(encode_record(item.key, item.label, one, settings.tensors))
    kept = np.flatnonzero(good)
    if kept.size:
        tally.measure(ChannelSums.of(settings.layout, {n: v[kept] for n, v in views[0].items()}))
        tally.count("encoded", int(kept.size))
    if encoder.decodes:
        _reconstruct(settings, encoder, batch.pixels, views[0], kept, tally)


def _reconstruct(
    settings: Settings,
    encoder: Encoder,
    pixels: NDArray[np.uint8],
    tensors: Tensors,
    kept: NDArray[np.intp],
    tally: _Tally,
) -> None:
    """Decode the first of the kept rows, as many as the quota still wants, in batches of one shape
    for all shards.
    """
    size = min(settings.batch_size, -(-RECONSTRUCTED // settings.shards))
    rows = kept[: tally.quota]
    tally.quota -= rows.size
    for start in range(0, rows.size, size):
        some = rows[start : start + size]
        padded = np.resize(some, size)  # repeats rows to fill up
        decoded = encoder.reconstruct({name: values[padded] for name, values in tensors.items()})
        tally.errors.append(ErrorSums.of(pixels[some], decoded[: some.size]))
