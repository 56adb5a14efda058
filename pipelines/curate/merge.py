"""`data merge`: several datasets of one VAE and crop as one. Shards are copied byte for byte, or
relabelled.

The merged dataset is what `preprocess` would leave, so it can be verified, trained on and merged
again. Like there, the plan is written first and the manifest last; shards that are done are marked,
and a repeated command makes the others.
"""

import hashlib
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.dataset.anywhere import StoredDataset, key_hash, open_dataset, repeated
from pipelines.dataset.finished import dataset_whole, finish_dataset
from pipelines.dataset.shard_results import (
    ChannelSums,
    ErrorSums,
    ShardResult,
    drop_damaged_results,
    read_marker,
    recall_markers,
    write_marker,
)
from pipelines.dataset.shards import ShardFile, write_shard
from pipelines.preprocess.lock import exclusive
from pipelines.sources import check_is_no_source
from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.manifest import (
    MANIFEST_NAME,
    MERGE_NAME,
    REJECTS_NAME,
    RESULTS_NAME,
    Counts,
    Manifest,
    PartInfo,
    ShardInfo,
    SourceInfo,
    parse_manifest,
)
from schemas.record import encode_record
from schemas.sealed import seal, unseal
from schemas.storage import paths
from schemas.storage.directory import GONE, WORK, Directory, open_directory, reported
from schemas.tfds_metadata import shard_name
from schemas.versions import installed_version

MERGED = "flowtrain:merge"  # in place of a source
_UNIQUE = "unique"  # says that the keys have been looked at
_VERSIONS = ("flowtrain", "array-record", "numpy")


@dataclass(frozen=True)
class _Plan:
    """Datasets that fit together, and what they become."""

    parts: tuple[StoredDataset, ...]
    results: tuple[tuple[ShardResult, ...], ...]  # of the shards of each part
    classes: tuple[str, ...]
    split: str
    split_given: bool

    @property
    def shards(self) -> int:
        """In each split of the merged dataset."""
        return sum(map(len, self.results))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names in the merged dataset, the main one first."""
        return (self.split, f"{self.split}_flip") if self.parts[0].manifest.flips else (self.split,)

    @property
    def command(self) -> str:
        """What makes the merged dataset again; OUT stands for it."""
        option = ["--split", self.split] if self.split_given else []
        return shlex.join(
            ["flowtrain", "data", "merge", *(part.root for part in self.parts), "OUT", *option]
        )

    def sources(self) -> tuple[PartInfo, ...]:
        """The parts as the manifest names them."""
        manifests = [part.manifest for part in self.parts]
        return tuple(
            PartInfo(
                digest=each.digest(),
                source=each.source,
                counts=each.counts,
                seed=each.seed,
                command=each.command,
            )
            for each in manifests
        )

    @cached_property
    def work(self) -> str:
        """Folder of what a merge in progress needs. Named for the merge: nobody takes what was
        begun by another.
        """
        return f"{WORK}/merge-{hashlib.sha256(self.text().encode()).hexdigest()[:16]}"

    def text(self) -> str:
        """Content of `merge.json`: decides every byte of the merged dataset."""
        content = {
            "command": self.command,
            "parts": [each.digest for each in self.sources()],
            "versions": _versions(),
        }
        return seal(json.dumps(content, indent=2) + "\n")


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
    plan = _make_plan(parts, split)
    check_is_no_source(out)
    directory = open_directory(out)
    if directory.root in [part.root for part in plan.parts]:
        raise UserError(f"{out} is one of the datasets to merge; give a new directory")
    _check_ours(directory, plan)
    with reported(directory), _parts_reported(plan), exclusive(directory):
        _check_ours(directory, plan)  # again: another command may have come first
        directory.sweep()
        done = _finished(directory)
        if done is None:
            done = _write(directory, plan, None if progress is None else not progress)
        directory.clear_work()
        return done


@contextmanager
def _parts_reported(plan: _Plan) -> Iterator[None]:
    """Tells a part that cannot be read from a directory that cannot be written."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or "")
        if any(where.startswith(part.root) for part in plan.parts):
            raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error
        raise


def _make_plan(parts: Sequence[str], split: str | None) -> _Plan:
    if len(parts) < 2:
        raise UserError(
            "give at least two datasets to merge, and then the directory for the new one"
        )
    if split is not None and not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise UserError(
            f"--split {split!r}: letters, digits and underscores only; it is part of file names"
        )
    datasets = tuple(open_dataset(part) for part in parts)
    for other in datasets[1:]:
        _check_fit(datasets[0], other)
    names = {dataset.manifest.split: dataset.root for dataset in datasets}
    if split is None and len(names) > 1:
        told = " and ".join(f"{name} in {root}" for name, root in list(names.items())[:2])
        raise UserError(
            f"the split is {told}; say with --split how to call it in the merged dataset"
        )
    results = tuple(_read_results(dataset) for dataset in datasets)
    return _Plan(
        datasets,
        results,
        _united_classes(datasets),
        split or datasets[0].manifest.split,
        split is not None,
    )


def _united_classes(datasets: Sequence[StoredDataset]) -> tuple[str, ...]:
    """The table of classes that all have; where they differ, all names, as they come.

    A table may hold a name twice (ImageNet's: crane, maillot), for two classes that the name does
    not tell apart.
    """
    first = datasets[0].manifest.classes
    other = next((dataset for dataset in datasets if dataset.manifest.classes != first), None)
    if other is None:
        return first
    for dataset in datasets:
        name, times = Counter(dataset.manifest.classes).most_common(1)[0]
        if times > 1:
            raise UserError(
                f"cannot merge {datasets[0].root} and {other.root}: their classes differ and "
                f"{times} classes of "
                f"{dataset.root} are called {json.dumps(name)}; preprocess again with names that "
                "tell them apart"
            )
    return tuple(dict.fromkeys(name for dataset in datasets for name in dataset.manifest.classes))


def _check_fit(first: StoredDataset, other: StoredDataset) -> None:
    """Refuse what has no common meaning; the difference is named."""
    mine, theirs = _traits(first.manifest), _traits(other.manifest)
    for name in mine:
        if mine[name] != theirs[name]:
            raise UserError(
                f"cannot merge {first.root} and {other.root}: {name} is {json.dumps(mine[name])} "
                "and "
                f"{json.dumps(theirs[name])}"
            )


def _traits(manifest: Manifest) -> dict[str, Any]:
    """What all parts must have in common."""
    content = manifest.model_dump(mode="json")
    vae = content["vae"] or {}
    fields = (
        "sha256",
        "scaling_factor",
        "shift_factor",
        "config_sha256",
        "decoder_sha256",
        "dtype",
    )
    traits = {f"the VAE's {name}": vae.get(name) for name in fields}
    return {
        name: content[name] for name in ("layout", "resolution", "crop", "flips", "pixel_range")
    } | {
        "the tensors": content["tensors"],
        "the normalization": content["normalization"],
        **traits,
    }


def _read_results(dataset: StoredDataset) -> tuple[ShardResult, ...]:
    info = next((info for info in dataset.manifest.files if info.name == RESULTS_NAME), None)
    if info is None:
        raise UserError(
            f"{dataset.root} has no {RESULTS_NAME}: only what `flowtrain preprocess` wrote can be "
            "merged"
        )
    try:
        data = paths.read(dataset.where(RESULTS_NAME))
    except OSError as error:
        raise UserError(
            f"{dataset.where(RESULTS_NAME)}: cannot be read ({error.strerror or error})"
        ) from error
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise _damaged(dataset, RESULTS_NAME)
    return tuple(ShardResult.model_validate_json(line) for line in data.splitlines())


def _damaged(dataset: StoredDataset, name: str) -> UserError:
    where = shlex.quote(dataset.root)
    return UserError(
        f"{dataset.where(name)} is missing or damaged; `flowtrain data verify {where}` says how to "
        "mend it"
    )


def _check_ours(directory: Directory, plan: _Plan) -> None:
    """Refuse a directory that holds anything but this merge, whole or half-made. Reads only."""
    if directory.exists(MERGE_NAME):
        begun = directory.read(MERGE_NAME)
        if begun != plan.text().encode():
            raise UserError(
                f"{directory.root} holds {_told(begun)}; repeat that, or choose another directory"
            )
        return
    if directory.exists(MANIFEST_NAME):  # `merge.json` was lost
        manifest = parse_manifest(
            directory.read(MANIFEST_NAME), paths.join(directory.root, MANIFEST_NAME)
        )
        if (manifest.command, manifest.parts, manifest.versions) == (
            plan.command,
            plan.sources(),
            _versions(),
        ):
            return
    foreign = [
        name
        for name in directory.names()
        if name != WORK and not name.startswith((GONE, f".{MERGE_NAME}"))
    ]
    if foreign:
        raise UserError(
            f"{directory.root} is not empty ({foreign[0]}); choose another directory for the "
            "merged dataset"
        )


def _told(begun: bytes) -> str:
    try:
        command = json.loads(unseal(begun))["command"]
        return f"another merge ({command}), or one of other parts or versions than are here now"
    except (ValueError, KeyError):
        return f"a damaged {MERGE_NAME}; delete it if this is the same merge"


def _finished(directory: Directory) -> Manifest | None:
    """The manifest when nothing is missing; a dataset that is not whole becomes half-made again."""
    if not directory.exists(MANIFEST_NAME):
        return None
    manifest = parse_manifest(
        directory.read(MANIFEST_NAME), paths.join(directory.root, MANIFEST_NAME)
    )
    if dataset_whole(directory.root, manifest):
        return manifest
    drop_damaged_results(directory, manifest)
    directory.remove(MANIFEST_NAME)
    return None


def _write(directory: Directory, plan: _Plan, disable: bool | None) -> Manifest:
    total = sum(shard.bytes for part in plan.parts for shard in part.manifest.shards)
    unique = f"{plan.work}/{_UNIQUE}"
    if not directory.exists(unique):
        with tqdm(total=total, unit="B", unit_scale=True, desc="keys", disable=disable) as bar:
            _check_keys(plan.parts, bar)
    if not directory.exists(MERGE_NAME):  # only now: a merge that cannot be takes no directory
        directory.create(MERGE_NAME, plan.text())
    directory.write(unique, "yes\n")
    recall_markers(directory, plan.work)
    results = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="copy", disable=disable) as bar:
        starts = [0, *accumulate(map(len, plan.results))]
        for start, part, shards in zip(starts, plan.parts, plan.results, strict=False):
            for result in shards:
                results.append(_merge_shard(directory, plan, part, result, start + result.shard))
                bar.update(sum(file.bytes for file in result.files))
    return _finish(directory, plan, results)


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
    directory: Directory, plan: _Plan, part: StoredDataset, result: ShardResult, number: int
) -> ShardResult:
    """Bring one shard, in all splits, to its new place and name."""
    done = read_marker(directory, plan.work, number)
    if done is not None:
        return done
    infos = []
    for split, file in zip(plan.splits, result.files, strict=True):
        name = shard_name(split, number, plan.shards)
        with directory.staging() as folder, paths.local_copy(part.where(file.name)) as source:
            written = _transfer(plan, part, file, source, folder / name)
            directory.publish(folder / name, name)
        infos.append(ShardInfo(name=name, split=split, **written._asdict()))
    merged = result.model_copy(update={"shard": number, "files": tuple(infos)})
    write_marker(directory, plan.work, merged)
    return merged


def _transfer(
    plan: _Plan, part: StoredDataset, file: ShardInfo, source: Path, target: Path
) -> ShardFile:
    """Copy a shard, with other label numbers where the classes are numbered otherwise."""
    same = part.manifest.classes == plan.classes  # then a name may be there twice
    labels = [
        number if same else plan.classes.index(name)
        for number, name in enumerate(part.manifest.classes)
    ]
    if not source.is_file():
        raise _damaged(part, file.name)
    shutil.copyfile(source, target)
    if sha256_file(target) != file.sha256:
        raise _damaged(part, file.name)
    if labels == list(range(len(labels))):
        return ShardFile(file.records, file.bytes, file.sha256)
    return write_shard(target, _relabelled(part, file, labels))


def _relabelled(part: StoredDataset, file: ShardInfo, labels: Sequence[int]) -> Iterator[bytes]:
    for record in part.records(file):
        yield encode_record(record.key, labels[record.label], record.tensors, part.manifest.tensors)


def _finish(directory: Directory, plan: _Plan, results: Sequence[ShardResult]) -> Manifest:
    first = plan.parts[0].manifest
    sources = plan.sources()
    counts = {
        name: sum(getattr(part.counts, name) for part in sources) for name in Counts.model_fields
    }
    digest = hashlib.sha256("\n".join(part.digest for part in sources).encode()).hexdigest()
    rejects = sorted(
        (reject for result in results for reject in result.rejects), key=lambda reject: reject.key
    )
    directory.write(REJECTS_NAME, "".join(reject.model_dump_json() + "\n" for reject in rejects))
    directory.write(RESULTS_NAME, "".join(result.model_dump_json() + "\n" for result in results))
    manifest = first.model_copy(
        update={
            "split": plan.split,
            "classes": plan.classes,
            "source": SourceInfo(descriptor=MERGED, split=plan.split, digest=digest),
            "counts": Counts(**counts),
            "channels": ChannelSums.merge(
                [result.channels for result in results], first.shape[2]
            ).statistics(),
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
            "versions": _versions(),
        }
    )
    return finish_dataset(directory, manifest, others=(REJECTS_NAME, RESULTS_NAME, MERGE_NAME))


def _versions() -> dict[str, str]:
    return {name: installed_version(name) for name in _VERSIONS}
