"""Small finished datasets as `preprocess` leaves them, made without Beam, a VAE or a source."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.dataset.finished import finish_dataset
from pipelines.dataset.shard_results import (
    ChannelSums,
    ErrorSums,
    Reject,
    ShardResult,
    empty_classes,
)
from pipelines.dataset.shards import write_shard
from schemas.layout import Layout, layout_tensors
from schemas.manifest import (
    REJECTS_NAME,
    RESULTS_NAME,
    Counts,
    Manifest,
    ShardInfo,
    SourceInfo,
    VaeInfo,
)
from schemas.storage.directory import Directory
from tests.datasets import Row, build_dataset

SHAPE = (2, 2, 4)
SPECS = layout_tensors(Layout.MOMENTS, SHAPE)
VAE = VaeInfo(
    id="tiny",
    sha256="1" * 64,
    config_sha256="3" * 64,
    factor=4,
    latent_channels=4,
    scaling_factor=0.5,
)


def tensors(key: str, split: str = "train") -> dict[str, np.ndarray]:
    """The moments of a key: normal numbers that nothing but the key and the split decide."""
    rng = np.random.default_rng(list(f"{split}/{key}".encode()))
    return {name: rng.normal(size=SHAPE).astype(np.float16) for name in SPECS}


def make(
    directory: Path,
    shards: Sequence[Mapping[str, str | int]],
    *,
    classes: Sequence[str] = ("ant", "bee"),
    rejects: Sequence[str] = (),
    split: str = "train",
    flips: bool = False,
    changes: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    **others: object,
) -> Manifest:
    """A dataset whose shards hold the keys given, each with the name or the number of its class.

    `changes` replaces the tensors of some keys; `others` are fields of the manifest.
    """
    own = changes or {}

    def content(key: str, name: str) -> dict[str, np.ndarray]:
        return {**tensors(key, name), **own.get(key, {})}

    def rows(items: Mapping[str, str | int], name: str) -> list[Row]:
        labels = {key: classes.index(c) if isinstance(c, str) else c for key, c in items.items()}
        return [Row(key, label, content(key, name)) for key, label in labels.items()]

    splits = (split, f"{split}_flip") if flips else (split,)
    bad = tuple(Reject(key=key, reason="bad", exception="OSError", size=3) for key in rejects)
    results = [
        _shard_result(number, [content(key, split) for key in items], bad if number == 0 else ())
        for number, items in enumerate(shards)
    ]
    results = [
        result.model_copy(
            update={"labels": tuple(sorted({row.label for row in rows(items, split)}))}
        )
        for result, items in zip(results, shards, strict=True)
    ]
    written = sum(map(len, shards))
    counts = Counts(
        source=written + len(rejects), written=written, rejected=len(rejects), duplicate=0
    )
    fields: dict[str, object] = {
        "split": split,
        "flips": flips,
        "resolution": 8,
        "crop": "adm",
        "classes": tuple(classes),
        "empty_classes": empty_classes(results, len(classes)),
        "source": SourceInfo(descriptor=f"/photos/{directory.name}", split=split, digest="2" * 64),
        "vae": VAE,
        "counts": counts,
        "channels": ChannelSums.merge([result.channels for result in results], 4).statistics(),
        "reconstruction": ErrorSums.merge([result.errors for result in results]).reconstruction(),
        "command": f"flowtrain preprocess /photos/{directory.name} OUT",
        "versions": {"flowtrain": "0"},
    }
    return build_dataset(
        directory,
        Layout.MOMENTS,
        SHAPE,
        {name: [rows(items, name) for items in shards] for name in splits},
        finish=lambda place, manifest: _finish(place, manifest, results),
        **{**fields, **others},
    )


def _shard_result(
    number: int, records: Sequence[dict[str, np.ndarray]], rejects: tuple[Reject, ...]
) -> ShardResult:
    """What a shard of these records reports, but for its files."""
    sums = []
    if records:
        stacked = {name: np.stack([record[name] for record in records]) for name in SPECS}
        sums.append(ChannelSums.of(Layout.MOMENTS, stacked))
    count = len(records)
    return ShardResult(
        shard=number,
        items=count + len(rejects),
        files=(),
        rejects=rejects,
        channels=ChannelSums.merge(sums, 4),
        errors=ErrorSums(squared_error=7 * count, values=10 * count, records=count),
    )


def _finish(directory: Path, manifest: Manifest, results: Sequence[ShardResult]) -> Manifest:
    """The rejects, what the shards reported, and all that finishes a dataset."""
    splits = [manifest.split_shards(split) for split in manifest.splits]
    lines = {
        REJECTS_NAME: [reject for result in results for reject in result.rejects],
        RESULTS_NAME: [
            result.model_copy(update={"files": tuple(shards[result.shard] for shards in splits)})
            for result in results
        ],
    }
    for name, models in lines.items():
        text = "".join(model.model_dump_json() + "\n" for model in models)
        (directory / name).write_text(text)
    return finish_dataset(Directory(str(directory)), manifest, others=(REJECTS_NAME, RESULTS_NAME))


def replaced(directory: Path, manifest: Manifest, number: int, records: list[bytes]) -> None:
    """Another content of a shard, with its checksum in the manifest: the work of a writer that is
    wrong.
    """
    shard = manifest.shards[number]
    written = write_shard(directory / shard.name, records)
    shards = list(manifest.shards)
    shards[number] = ShardInfo(name=shard.name, split=shard.split, **written._asdict())
    finish_dataset(Directory(str(directory)), manifest.model_copy(update={"shards": tuple(shards)}))
