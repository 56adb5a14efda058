"""Small finished datasets as `preprocess` leaves them, made without Beam, a VAE or a source."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.dataset.finished import finish_dataset
from pipelines.dataset.shard_results import ChannelSums, ErrorSums, Reject, ShardResult
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
from schemas.record import encode_record
from schemas.storage.directory import Directory
from schemas.tfds_metadata import shard_name

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
    directory.mkdir(parents=True)
    results = []
    splits = [split, f"{split}_flip"] if flips else [split]
    for number, items in enumerate(shards):
        files = []
        for name in splits:
            values = {key: {**tensors(key, name), **(changes or {}).get(key, {})} for key in items}
            labels = {
                key: classes.index(c) if isinstance(c, str) else c for key, c in items.items()
            }
            records = [
                encode_record(key, label, values[key], SPECS) for key, label in labels.items()
            ]
            file = shard_name(name, number, len(shards))
            files.append(
                ShardInfo(name=file, split=name, **write_shard(directory / file, records)._asdict())
            )
        mine = [{**tensors(key, split), **(changes or {}).get(key, {})} for key in items]
        stacked = {name: np.stack([one[name] for one in mine]) for name in SPECS} if mine else None
        bad = (
            [Reject(key=key, reason="bad", exception="OSError", size=3) for key in rejects]
            if number == 0
            else []
        )
        results.append(
            ShardResult(
                shard=number,
                items=len(items) + len(bad),
                files=tuple(files),
                rejects=tuple(bad),
                channels=ChannelSums.merge(
                    [ChannelSums.of(Layout.MOMENTS, stacked)] if stacked else [], 4
                ),
                errors=ErrorSums(
                    squared_error=7 * len(items), values=10 * len(items), records=len(items)
                ),
            )
        )
    written = sum(map(len, shards))
    (directory / REJECTS_NAME).write_text(
        "".join(r.model_dump_json() + "\n" for s in results for r in s.rejects)
    )
    (directory / RESULTS_NAME).write_text(
        "".join(result.model_dump_json() + "\n" for result in results)
    )
    fields: dict[str, object] = {
        "layout": Layout.MOMENTS,
        "split": split,
        "flips": flips,
        "resolution": 8,
        "crop": "adm",
        "tensors": SPECS,
        "classes": tuple(classes),
        "source": SourceInfo(descriptor=f"/photos/{directory.name}", split=split, digest="2" * 64),
        "vae": VAE,
        "counts": Counts(
            source=written + len(rejects), written=written, rejected=len(rejects), duplicate=0
        ),
        "channels": ChannelSums.merge([result.channels for result in results], 4).statistics(),
        "reconstruction": ErrorSums.merge([result.errors for result in results]).reconstruction(),
        "shards": tuple(
            result.files[position] for position in range(len(splits)) for result in results
        ),
        "seed": 0,
        "command": f"flowtrain preprocess /photos/{directory.name} OUT",
        "versions": {"flowtrain": "0"},
    }
    manifest = Manifest.model_validate({**fields, **others})
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
