"""One shard, from its slice of the index to its files: a pure function of the slice, the encoder and the settings."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.encoders import Encoder, Tensors
from pipelines.images import CROPS, ImageError
from pipelines.index import read_index
from pipelines.progress import Ticker
from pipelines.results import (
    ChannelSums,
    ErrorSums,
    Reject,
    ShardFailure,
    ShardResult,
    read_marker,
    write_marker,
)
from pipelines.settings import Settings
from pipelines.shards import ShardFile, ShardWriter
from pipelines.sources import Item, Picture, Source, open_source
from pipelines.storage import LocalDirectory, cannot_write
from schemas.errors import UserError
from schemas.manifest import ShardInfo
from schemas.record import encode_record

RECONSTRUCTED = 32  # records of a dataset that are decoded again to measure the reconstruction
MAX_DECODERS = 8


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


@dataclass
class _Tally:
    """What adds up while a shard is written."""

    quota: int  # records still to be reconstructed
    rejects: list[Reject] = field(default_factory=list)
    channels: list[ChannelSums] = field(default_factory=list)
    errors: list[ErrorSums] = field(default_factory=list)

    def reject(self, item: Item, reason: str, exception: str) -> None:
        self.rejects.append(Reject(key=item.key, reason=reason, exception=exception, size=item.size))


def make_shard(
    directory: LocalDirectory, settings: Settings, piece: Slice, load: Callable[[], Encoder]
) -> ShardResult | ShardFailure:
    """Make a shard and leave its done-marker, unless that is there already and fits the files.

    Args:
        directory: where the dataset lies; its index has been written.
        settings: the settings of the dataset.
        piece: which shard.
        load: gives the encoder; called only when there is something to encode.

    Returns:
        The result, or the failure when the user can mend what went wrong (unreadable or full storage, wrong weights).
    """
    done = read_marker(directory, piece.shard)
    if done is not None:
        return done
    try:
        return _make(directory, settings, piece, load())
    except UserError as error:
        return ShardFailure(shard=piece.shard, message=str(error))
    except OSError as error:
        return ShardFailure(shard=piece.shard, message=cannot_write(directory, error))


def _make(directory: LocalDirectory, settings: Settings, piece: Slice, encoder: Encoder) -> ShardResult:
    items = read_index(directory, piece.offset, piece.length)
    names = settings.shard_files(piece.shard)
    staged = [directory.stage(name) for name in names]
    tally = _Tally(reconstruction_quota(piece.shard, settings.shards))
    try:
        written = _write(settings, encoder, items, staged, tally, Ticker(directory, piece.shard))
        for path, name in zip(staged, names, strict=True):
            directory.publish(path, name)
    finally:
        for path in staged:
            path.unlink(missing_ok=True)
    result = ShardResult(
        shard=piece.shard,
        items=len(items),
        files=tuple(
            ShardInfo(name=name, split=split, **file._asdict())
            for name, split, file in zip(names, settings.splits, written, strict=True)
        ),
        rejects=tuple(sorted(tally.rejects, key=lambda reject: reject.key)),
        channels=ChannelSums.merge(tally.channels, settings.shape[2]),
        errors=ErrorSums.merge(tally.errors),
    )
    write_marker(directory, result)
    return result


def _write(
    settings: Settings,
    encoder: Encoder,
    items: Sequence[Item],
    staged: Sequence[Path],
    tally: _Tally,
    ticker: Ticker,
) -> list[ShardFile]:
    """Encode the items into the staged files, one a split."""
    source = open_source(settings.source.descriptor, settings.source.split)
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(path)) for path in staged]
        pool = stack.enter_context(ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1)))
        batches = _batches(_decoded(source, items, settings, pool, tally), settings)
        for batch, views in _encoded(batches, encoder, settings.flips):
            _write_batch(settings, encoder, batch, views, writers, tally)
            ticker.add(len(batch.items))
        return [writer.close() for writer in writers]


def reconstruction_quota(shard: int, shards: int) -> int:
    """How many of the first records of a shard are decoded again: `RECONSTRUCTED` in all, spread evenly."""
    return (shard + 1) * RECONSTRUCTED // shards - shard * RECONSTRUCTED // shards


def _decoded(
    source: Source, items: Sequence[Item], settings: Settings, pool: ThreadPoolExecutor, tally: _Tally
) -> Iterator[tuple[Item, NDArray[np.uint8]]]:
    """Items with their cropped pixels, in order, read and decoded ahead by threads; bad images go to the tally."""
    crop = CROPS[settings.crop]

    def work(item: Item) -> Picture | ImageError:
        try:
            picture = source.read(item)
            return Picture(crop(picture.pixels, settings.resolution), picture.label)
        except ImageError as error:
            return error

    waiting = iter(items)
    ahead: deque[tuple[Item, Future[Picture | ImageError]]] = deque()
    while True:
        for item in islice(waiting, 2 * settings.batch_size - len(ahead)):
            ahead.append((item, pool.submit(work, item)))
        if not ahead:
            return
        item, future = ahead.popleft()
        try:
            picture = future.result()
        except OSError as error:  # the disk's fault, not the image's: not to be remembered as a bad image
            raise UserError(
                f"cannot read {item.key} of {source.descriptor} ({error.strerror or error}); "
                "mend it and repeat the command"
            ) from error
        if isinstance(picture, ImageError):
            tally.reject(item, picture.reason, picture.exception)
        else:
            yield replace(item, label=picture.label), picture.pixels


def _batches(decoded: Iterator[tuple[Item, NDArray[np.uint8]]], settings: Settings) -> Iterator[_Batch]:
    """Batches of one shape; the last one is filled up with black."""
    while rows := list(islice(decoded, settings.batch_size)):
        pixels = np.zeros((settings.batch_size, settings.resolution, settings.resolution, 3), np.uint8)
        for row, (_, image) in enumerate(rows):
            pixels[row] = image
        yield _Batch(tuple(item for item, _ in rows), pixels)


def _encoded(batches: Iterator[_Batch], encoder: Encoder, flips: bool) -> Iterator[tuple[_Batch, list[Tensors]]]:
    """Batches with their tensors, one entry a split; the next batch is begun before the last one is waited for."""
    begun: deque[tuple[_Batch, list[Callable[[], Tensors]]]] = deque()
    for batch in batches:
        views = [batch.pixels, batch.pixels[:, :, ::-1]] if flips else [batch.pixels]
        begun.append((batch, [encoder.start(view) for view in views]))
        if len(begun) > 1:
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
            tally.reject(item, "its latent is not finite in float16", "OverflowError")
            continue
        for tensors, writer in zip(views, writers, strict=True):
            one = {name: values[row] for name, values in tensors.items()}
            writer.write(encode_record(item.key, item.label, one, settings.tensors))
    kept = np.flatnonzero(good)
    if kept.size:
        tally.channels.append(ChannelSums.of(settings.layout, {n: v[kept] for n, v in views[0].items()}))
    if settings.vae is not None:
        _reconstruct(settings, encoder, batch.pixels, views[0], kept, tally)


def _reconstruct(
    settings: Settings,
    encoder: Encoder,
    pixels: NDArray[np.uint8],
    tensors: Tensors,
    kept: NDArray[np.intp],
    tally: _Tally,
) -> None:
    """Decode the first of the kept rows, as many as the quota still wants, in batches of one shape for all shards."""
    size = min(settings.batch_size, -(-RECONSTRUCTED // settings.shards))
    rows = kept[: tally.quota]
    tally.quota -= rows.size
    for start in range(0, rows.size, size):
        some = rows[start : start + size]
        padded = np.resize(some, size)  # repeats rows to fill up
        decoded = encoder.reconstruct({name: values[padded] for name, values in tensors.items()})
        tally.errors.append(ErrorSums.of(pixels[some], decoded[: some.size]))
