"""Datasets that are to be merged: whether they fit together, and what they become.

Also what tells that a directory is this merge.
"""

import functools
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.dataset.anywhere import StoredDataset, open_dataset
from pipelines.dataset.build import Identity, ShardedBuild, identity_key
from pipelines.dataset.shard_results import ShardResult
from schemas.errors import UserError, reason_of
from schemas.json_text import parse_object
from schemas.manifest import MERGE_NAME, RESULTS_NAME, Manifest, PartInfo
from schemas.sealed import seal, unseal
from schemas.storage import paths
from schemas.storage.directory import WORK, Directory
from schemas.versions import installed_version

_UNIQUE = "unique"  # says that the keys have been looked at
_VERSIONS = ("flowtrain", "array-record", "numpy")


@dataclass(frozen=True)
class MergePlan:
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
        """Folder of what a merge in progress needs, named for all that the merge is."""
        return f"{WORK}/merge-{identity_key(self.text())}"

    def text(self) -> str:
        """Content of `merge.json`: decides every byte of the merged dataset."""
        content = {
            "command": self.command,
            "parts": [each.digest for each in self.sources()],
            "versions": current_versions(),
        }
        return seal(json.dumps(content, indent=2) + "\n")


def make_plan(parts: Sequence[str], split: str | None) -> MergePlan:
    """What `pipelines.curate.merge.merge` makes of these arguments. Nothing is written.

    Raises:
        UserError: the parts do not fit together, or one of them is damaged or no finished dataset.
    """
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
    return MergePlan(
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
                f"{times} classes of {dataset.root} are called {json.dumps(name)}; preprocess "
                "again with names that tell them apart"
            )
    return tuple(dict.fromkeys(name for dataset in datasets for name in dataset.manifest.classes))


def _check_fit(first: StoredDataset, other: StoredDataset) -> None:
    """Refuse what has no common meaning; the difference is named."""
    mine, theirs = _traits(first.manifest), _traits(other.manifest)
    for name in mine:
        if mine[name] != theirs[name]:
            raise UserError(
                f"cannot merge {first.root} and {other.root}: {name} is {json.dumps(mine[name])} "
                f"and {json.dumps(theirs[name])}"
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
            f"{dataset.where(RESULTS_NAME)}: cannot be read ({reason_of(error)})"
        ) from error
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise damaged_file(dataset, RESULTS_NAME)
    return tuple(ShardResult.model_validate_json(line) for line in data.splitlines())


def damaged_file(dataset: StoredDataset, name: str) -> UserError:
    """The line about a file of a part that is missing or damaged."""
    where = shlex.quote(dataset.root)
    return UserError(
        f"{dataset.where(name)} is missing or damaged; `flowtrain data verify {where}` says how to "
        "mend it"
    )


def current_versions() -> dict[str, str]:
    """Versions of what takes part in making the bytes."""
    return {name: installed_version(name) for name in _VERSIONS}


def merge_build(directory: Directory, plan: MergePlan) -> ShardedBuild:
    """The build of a merged dataset; its shards can be made once the keys have been looked at."""
    root = directory.root
    identity = Identity(
        name=MERGE_NAME,
        text=plan.text(),
        refusal=functools.partial(_refusal, root, plan.text().encode()),
        made=functools.partial(_made, plan),
        occupied=lambda entry: (
            f"{root} is not empty ({entry}); choose another directory for the merged dataset"
        ),
    )
    return ShardedBuild(directory, identity, plan.work, f"{plan.work}/{_UNIQUE}")


def _refusal(root: str, text: bytes, content: bytes, finished: bool) -> str | None:
    """Which merge a directory was begun with, unless it is that of `text`."""
    del finished  # every byte depends on the versions too, and they are part of the text
    if content == text:
        return None
    return f"{root} holds {_told(content)}; repeat that, or choose another directory"


def _told(begun: bytes) -> str:
    try:
        command = parse_object(unseal(begun))["command"]
        return f"another merge ({command}), or one of other parts or versions than are here now"
    except (ValueError, KeyError):
        return f"a damaged {MERGE_NAME}; delete it if this is the same merge"


def _made(plan: MergePlan, manifest: Manifest) -> bool:
    """Whether a finished dataset is this merge, as far as its manifest tells."""
    made = manifest.command, manifest.parts, manifest.versions
    return made == (plan.command, plan.sources(), current_versions())
