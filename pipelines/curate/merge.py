"""`data merge`: several datasets of one VAE and crop as one. Shards are copied byte for byte, or
relabelled.

The merged dataset is what `preprocess` would leave, so it can be verified, trained on and merged
again. Like there, the plan is written first and the manifest last; shards that are done are marked,
and a repeated command makes the others.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.curate.merge_plan import (
    MergePlan,
    current_versions,
    damaged_file,
    make_plan,
    merge_build,
)
from pipelines.dataset.anywhere import StoredDataset, key_hash, repeated
from pipelines.dataset.build import ShardedBuild
from pipelines.dataset.lock import exclusive
from pipelines.dataset.shard_results import (
    ChannelSums,
    ErrorSums,
    ShardResult,
    drop_damaged_results,
    empty_classes,
)
from pipelines.dataset.shards import ShardFile, write_shard
from pipelines.sources import check_is_no_source
from schemas.bars import bytes_bar
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file
from schemas.manifest import MERGE_NAME, Counts, Manifest, ShardInfo, SourceInfo
from schemas.record import encode_record
from schemas.storage import paths
from schemas.storage.directory import Directory, open_directory, reported
from schemas.tfds_metadata import shard_name

MERGED = "flowtrain:merge"  # in place of a source


def merge(
    parts: Sequence[str], out: str, split: str | None = None, progress: bool | None = False
) -> Manifest:
    """Join datasets.

    Args:
        parts: two or more paths or URLs, in the order of their records in the merged dataset.
        out: path or URL of the merged dataset.
        split: name of its split; None for that of the parts.
        progress: show a bar on stderr; None where stderr is a terminal.

    Returns:
        The manifest of the merged dataset.

    Raises:
        UserError: the parts do not fit together, a key is in two of them, one is damaged, or OUT
            holds something else.
    """
    plan = make_plan(parts, split)
    check_is_no_source(out)
    directory = open_directory(out)
    if directory.root in [part.root for part in plan.parts]:
        raise UserError(f"{out} is one of the datasets to merge; give a new directory")
    build = merge_build(directory, plan)
    build.check_ownership()
    with reported(directory), _parts_reported(plan), exclusive(directory):
        done = build.resume(functools.partial(drop_damaged_results, directory))
        if done is None:
            done = _write(build, plan, None if progress is None else not progress)
        build.clear_away()
        return done


@contextmanager
def _parts_reported(plan: MergePlan) -> Iterator[None]:
    """Tells a part that cannot be read from a directory that cannot be written."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or "")
        if any(where.startswith(part.root) for part in plan.parts):
            raise UserError(f"{where}: cannot be read ({reason_of(error)})") from error
        raise


def _write(build: ShardedBuild, plan: MergePlan, disable: bool | None) -> Manifest:
    total = sum(shard.bytes for part in plan.parts for shard in part.manifest.shards)
    if not build.prepared:  # before anything is written: a merge that cannot be takes no directory
        with bytes_bar(total, "keys", disable) as bar:
            _check_keys(plan.parts, bar)
    build.prepare(lambda name: build.directory.write(name, "yes\n"))
    results = []
    with bytes_bar(total, "copy", disable) as bar:
        starts = [0, *accumulate(map(len, plan.results))]
        for start, part, shards in zip(starts, plan.parts, plan.results, strict=False):
            for result in shards:
                number = start + result.shard
                make = functools.partial(_merge_shard, build.directory, plan, part, result, number)
                results.append(build.shard(number, make))
                bar.update(sum(file.bytes for file in result.files))
    return _finish(build, plan, results)


def _check_keys(parts: Sequence[StoredDataset], bar: Any) -> None:
    """A key must be in one part only. Hashes of all keys are held; what seems to clash is looked at
    again.
    """
    hashes = []
    for part in parts:
        mine = []
        for shard in part.manifest.split_shards(part.manifest.split):
            mine += [key_hash(record.key) for record in part.records(shard)]
            bar.update(shard.bytes)
        hashes.append(np.array(mine, np.uint64))
    suspects = repeated(np.concatenate(hashes))
    first: dict[str, str] = {}
    for part, mine in zip(parts, hashes, strict=True):
        rows = np.flatnonzero(np.isin(mine, suspects)).tolist()
        for record in part.at(part.manifest.split, rows):
            if record.key in first:
                raise UserError(
                    f"cannot merge: the key {json.dumps(record.key)} is in {first[record.key]} and "
                    f"in {part.root}; "
                    "keys must be unique"
                )
            first[record.key] = part.root


def _merge_shard(
    directory: Directory, plan: MergePlan, part: StoredDataset, result: ShardResult, number: int
) -> ShardResult:
    """Bring one shard, in all splits, to its new place and name."""
    infos = []
    for split, file in zip(plan.splits, result.files, strict=True):
        name = shard_name(split, number, plan.shards)
        with directory.staging() as folder, paths.local_copy(part.where(file.name)) as source:
            written = _transfer(plan, part, file, source, folder / name)
            directory.publish(folder / name, name)
        infos.append(ShardInfo(name=name, split=split, **written._asdict()))
    changes = {"shard": number, "files": tuple(infos)}
    if result.labels is not None:
        new = _new_labels(plan, part)
        changes["labels"] = tuple(sorted({new[label] for label in result.labels}))
    return result.model_copy(update=changes)


def _new_labels(plan: MergePlan, part: StoredDataset) -> list[int]:
    """The number in the merged dataset of each of a part's classes."""
    if part.manifest.classes == plan.classes:  # then a name may be there twice
        return list(range(len(plan.classes)))
    return [plan.classes.index(name) for name in part.manifest.classes]


def _transfer(
    plan: MergePlan, part: StoredDataset, file: ShardInfo, source: Path, target: Path
) -> ShardFile:
    """Copy a shard, with other label numbers where the classes are numbered otherwise."""
    labels = _new_labels(plan, part)
    if not source.is_file():
        raise damaged_file(part, file.name)
    shutil.copyfile(source, target)
    if sha256_file(target) != file.sha256:
        raise damaged_file(part, file.name)
    if labels == list(range(len(labels))):
        return ShardFile(file.records, file.bytes, file.sha256)
    return write_shard(target, _relabelled(part, file, labels))


def _relabelled(part: StoredDataset, file: ShardInfo, labels: Sequence[int]) -> Iterator[bytes]:
    for record in part.records(file):
        yield encode_record(record.key, labels[record.label], record.tensors, part.manifest.tensors)


def _finish(build: ShardedBuild, plan: MergePlan, results: Sequence[ShardResult]) -> Manifest:
    first = plan.parts[0].manifest
    sources = plan.sources()
    counts = {
        name: sum(getattr(part.counts, name) for part in sources) for name in Counts.model_fields
    }
    digest = hashlib.sha256("\n".join(part.digest for part in sources).encode()).hexdigest()
    sums = ChannelSums.merge([result.channels for result in results], first.shape[2])
    try:
        channels = sums.statistics()
    except ValueError:
        raise UserError(
            "records of the parts are not finite; `flowtrain data verify` says of which part"
        ) from None
    build.write_rejects(results)
    manifest = first.model_copy(
        update={
            "split": plan.split,
            "classes": plan.classes,
            "empty_classes": empty_classes(results, len(plan.classes)),
            "source": SourceInfo(descriptor=MERGED, split=plan.split, digest=digest),
            "counts": Counts(**counts),
            "channels": channels,
            "reconstruction": ErrorSums.merge(
                [result.errors for result in results]
            ).reconstruction(),
            "shards": tuple(
                result.files[place] for place in range(len(plan.splits)) for result in results
            ),
            "sealed": (),
            "parts": sources,
            "seed": 0,  # each part has its own
            "command": plan.command,
            "versions": current_versions(),
        }
    )
    return build.finish(manifest, results, others=(MERGE_NAME,))
