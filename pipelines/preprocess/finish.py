"""The last step: all shards there, thresholds kept, then the metadata files and, last of all, the
manifest.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipelines.dataset.shard_results import (
    NOT_FINITE,
    ChannelSums,
    ErrorSums,
    Reject,
    ShardFailure,
    ShardResult,
    empty_classes,
)
from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.settings import Settings
from schemas.errors import UserError
from schemas.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    SETTINGS_NAME,
    Counts,
    Manifest,
    ShardInfo,
)
from schemas.storage.directory import Directory

_OTHER_VAE = (
    "the VAE or its precision is wrong for these images; preprocess into a new directory with "
    "another"
)
_ASKED_AT_ONCE = 16  # shards in an object store


def finish(
    directory: Directory,
    settings: Settings,
    max_bad_fraction: float,
    min_psnr: float,
    failure_name: str,
    outcomes: Sequence[ShardResult | ShardFailure],
) -> None:
    """Write rejects, metadata and manifest, or leave word why not (`take_failure`).

    A worker cannot raise an error that every runner would hand on as it is, so a failure travels by
    a file, which is `failure_name`: of this run alone, since several may be at work in an object
    store.
    """
    build = dataset_build(directory, settings)
    try:
        results = _complete(settings, outcomes)
        build.check_ours()
        _check_published(directory, results)
        rejects = build.write_rejects(results)
        manifest = make_manifest(settings, results)
        check_quality(manifest, max_bad_fraction, min_psnr, rejects)
        build.finish(manifest, results)
        return
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = directory.trouble(error)
    with suppress(OSError):  # where nothing can be written, that there is no manifest says enough
        directory.write(failure_name, failure)


def take_failure(directory: Directory, failure_name: str) -> str | None:
    """Why there is no manifest after `finish`; None when there is one. Can be asked once.

    Raises:
        OSError: the storage fails.
    """
    try:
        failure = directory.read(failure_name).decode()
        directory.remove(failure_name)
        return failure
    except (FileNotFoundError, NotADirectoryError):
        if directory.exists(MANIFEST_NAME):
            return None
    return (
        f"cannot finish {directory.root}, nor write down why (is the disk full?); make room and "
        "repeat the command"
    )


def _complete(
    settings: Settings, outcomes: Sequence[ShardResult | ShardFailure]
) -> list[ShardResult]:
    """The results of all shards, in order.

    Raises:
        UserError: one failed, is missing, or does not account for its images.
    """
    failures = [outcome for outcome in outcomes if isinstance(outcome, ShardFailure)]
    if failures:
        raise UserError(_failed(failures))
    results = [outcome for outcome in outcomes if isinstance(outcome, ShardResult)]
    results.sort(key=lambda result: result.shard)
    if [result.shard for result in results] != list(range(settings.shards)):
        raise UserError(
            f"{len(results)} of {settings.shards} shards came back; repeat the command to make the "
            "rest"
        )
    for result in results:
        _check_counts(settings, result)
    return results


def _failed(failures: Sequence[ShardFailure]) -> str:
    first = min(failures, key=lambda failure: failure.shard)
    others = len(failures) - 1
    if others == 0:
        return first.message
    shards = "shard" if others == 1 else "shards"
    return f"{first.message} (and {others} more {shards} failed)"


def _check_counts(settings: Settings, result: ShardResult) -> None:
    """Every image of a shard's slice is a record of each split or a reject."""
    start, stop = settings.shard_range(result.shard)
    sizes = {file.records + len(result.rejects) for file in result.files}
    if sizes == {stop - start}:
        return
    told = " and ".join(map(str, sorted(sizes)))
    raise UserError(
        f"shard {result.shard} accounts for {told} of its {stop - start} images, a fault of "
        "flowtrain; preprocess into a new directory and report it"
    )


def _check_published(directory: Directory, results: Sequence[ShardResult]) -> None:
    """The shards that lie there are those that were made.

    In an object store the same command on a machine of another kind may have put other bytes in
    their place.
    """
    shards = [file for result in results for file in result.files]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for shard, there in zip(
            shards, pool.map(partial(_published, directory), shards), strict=True
        ):
            if not there:
                raise UserError(
                    f"{directory.root}/{shard.name} was lost or replaced meanwhile; repeat the "
                    "command"
                )


def _published(directory: Directory, shard: ShardInfo) -> bool:
    if not directory.store.locks:
        return directory.matches(shard.name, shard.bytes, shard.sha256)
    # only the holder of the lock writes there, and reading it all takes long
    path = Path(directory.path(shard.name))
    return path.is_file() and path.stat().st_size == shard.bytes


def make_manifest(settings: Settings, results: Sequence[ShardResult]) -> Manifest:
    """Merge the results of all shards.

    Raises:
        UserError: not one record was written, or the statistics are not finite.
    """
    written = sum(result.records for result in results)
    rejected = sum(len(result.rejects) for result in results)
    if not written:
        raise UserError(
            f"all {rejected} images of {settings.source.descriptor} were rejected, see "
            f"{REJECTS_NAME}"
        )
    sums = ChannelSums.merge([result.channels for result in results], settings.shape[2])
    try:
        channels = sums.statistics()
    except ValueError:
        raise UserError(f"the statistics of the latents are not finite; {_OTHER_VAE}") from None
    return Manifest(
        layout=settings.layout,
        split=settings.source.split,
        flips=settings.flips,
        resolution=settings.resolution,
        crop=settings.crop,
        tensors=settings.tensors,
        classes=settings.classes,
        empty_classes=empty_classes(results, len(settings.classes)),
        source=settings.source,
        vae=settings.vae,
        counts=Counts(
            source=settings.records + settings.duplicates,
            written=written,
            rejected=rejected,
            duplicate=settings.duplicates,
            enlarged=sum(result.enlarged for result in results),
        ),
        channels=channels,
        reconstruction=ErrorSums.merge([result.errors for result in results]).reconstruction(),
        shards=tuple(
            result.files[position] for position in range(len(settings.splits)) for result in results
        ),
        sealed=(SETTINGS_NAME,),
        seed=settings.seed,
        command=settings.command(),
        versions=settings.versions,
    )


def check_quality(
    manifest: Manifest, max_bad_fraction: float, min_psnr: float, rejects: Sequence[Reject] = ()
) -> None:
    """Hold a dataset against the thresholds of the command.

    Raises:
        UserError: latents that are not finite, too many bad images, or too poor a reconstruction.
    """
    counts, reconstruction = manifest.counts, manifest.reconstruction
    broken = [reject.key for reject in rejects if reject.exception == NOT_FINITE]
    if broken:  # not a matter of the images: no threshold lets it pass
        raise UserError(
            f"{len(broken)} of {counts.source} images have latents that are not finite in float16 "
            "(first: "
            f"{json.dumps(broken[0])}); {_OTHER_VAE}"
        )
    fraction = counts.rejected / counts.source
    if fraction > max_bad_fraction:
        first = f" (first: {json.dumps(rejects[0].key)}: {rejects[0].reason})" if rejects else ""
        raise UserError(
            f"{counts.rejected} of {counts.source} images were rejected{first}, more than "
            f"--max-bad-fraction {max_bad_fraction:g}; see {REJECTS_NAME}, then repeat with "
            f"--max-bad-fraction {_ceil3(fraction)} (finished shards are kept) or mend the images "
            "and preprocess into a new directory"
        )
    if reconstruction is not None and reconstruction.psnr_db < min_psnr:
        raise UserError(
            f"the VAE reconstructs {reconstruction.records} of the images with "
            f"{reconstruction.psnr_db:.1f} dB, below --min-psnr {min_psnr:g}: it may be the wrong "
            "VAE or resolution for them; choose another, or repeat with a lower --min-psnr"
        )


def _ceil3(fraction: float) -> float:
    """Rounded up to three digits, so that repeating with it succeeds."""
    return math.ceil(fraction * 1000) / 1000
