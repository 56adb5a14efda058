"""Samples of a trained model: in memory, or as a latent dataset written shard by shard.

Sample i depends on (seed, i) alone, so a shard can be made on its own, in any order, again after a
kill. To the bit that holds for one batch size and one kind of device; others round differently.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.draw.setting import Setting, equivalent_command, sampling_facts
from evaluation.results import Sampling
from pipelines.dataset.build import Claim, Identity, made_once
from pipelines.dataset.finished import finish_dataset
from pipelines.dataset.lock import held
from pipelines.dataset.shards import count_records, read_shard, write_shard
from schemas.errors import UserError
from schemas.files import sha256_file, write_atomic
from schemas.json_text import parse_object
from schemas.layout import Layout, layout_tensors
from schemas.manifest import (
    SAMPLING_NAME,
    ChannelStatistics,
    Counts,
    Manifest,
    ShardInfo,
    SourceInfo,
)
from schemas.record import decode_record, encode_record
from schemas.storage.directory import Directory
from schemas.tfds_metadata import shard_name
from schemas.versions import installed_version

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel

SPLIT = "samples"
BATCH_SIZE = 256  # powers of two: they divide over any usual number of devices
SHARD_SIZE = 512
_COUNT_SUFFIX = ".evaluations"  # beside a shard of such a solver: what it took


class Drawn(NamedTuple):
    """Labels (n,) int32, latents (n, h, w, c) float16 in the model's scale, and network evaluations
    (n,) int32.
    """

    labels: NDArray[np.int32]
    latents: NDArray[np.float16]
    evaluations: NDArray[np.int32]


def draw(
    trained: "TrainedModel", setting: Setting, start: int, stop: int, batch_size: int = BATCH_SIZE
) -> Iterator[Drawn]:
    """Samples [start, stop) in batches, as `draw_at`."""
    return draw_at(trained, setting, np.arange(start, stop, dtype=np.int64), batch_size)


def draw_at(
    trained: "TrainedModel",
    setting: Setting,
    numbers: NDArray[np.int64],
    batch_size: int = BATCH_SIZE,
) -> Iterator[Drawn]:
    """The samples of some numbers (n,) in batches.

    float16 is what a dataset of samples stores; rounding here makes every way of writing samples
    give the same pixels.

    Raises:
        UserError: the model gives numbers that are not finite.
    """
    from flowtrain.flow.sampler import sample, spread

    trained = spread(trained, batch_size)
    for begin in range(0, len(numbers), batch_size):
        indices = numbers[begin : begin + batch_size]
        labels = setting.labels(indices, trained.run.sampled_classes)
        samples = sample(trained, labels, indices, setting.sampler, batch_size=batch_size)
        with np.errstate(over="ignore"):  # told below
            stored = samples.x.astype(np.float16)
        if not np.isfinite(stored).all():
            raise UserError(
                f"the weights of step {trained.step} give samples that are not finite (guidance "
                f"{setting.sampler.cfg:g}, {setting.sampler.effort}); lower --cfg, or take an "
                "earlier checkpoint with --step"
            )
        yield Drawn(labels, stored, samples.evaluations)


def fitting_batch_size(batch_size: int, num: int, shard_size: int = SHARD_SIZE) -> int:
    """At most a shard's records, and all that are asked for: more would be computed and thrown
    away.
    """
    return min(batch_size, shard_size, num)


def generate(
    trained: "TrainedModel",
    setting: Setting,
    directory: Path,
    *,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda count: None,
) -> Manifest:
    """Write the samples of a setting as a latent dataset; shards that are there already are kept.

    Killed at any moment and repeated, it gives the same bytes; so it does where shards went missing
    or were cut. `progress` is called with numbers of samples done.

    Raises:
        UserError: the directory holds something else.
    """
    batch_size = fitting_batch_size(batch_size, setting.num, shard_size)
    plan = {
        **sampling_facts(trained, setting).model_dump(mode="json"),
        "shard_size": shard_size,
        "batch_size": batch_size,
    }
    with _claimed(directory, plan) as claim:
        found = claim.resume(functools.partial(_drop_cut_shards, directory))
        if found is not None:
            progress(setting.num)
            return found
        from flowtrain.flow.sampler import spread

        trained = spread(trained, batch_size)  # once, not for every shard
        count = -(-setting.num // shard_size)
        shards = []
        for number in range(count):
            start, stop = number * shard_size, min((number + 1) * shard_size, setting.num)
            path = directory / shard_name(SPLIT, number, count)
            whole = functools.partial(_whole_shard, setting, path, stop - start, progress)
            make = functools.partial(
                _write_shard, trained, setting, path, (start, stop), batch_size, progress
            )
            shards.append(made_once(whole, make))
        return _finish(trained, setting, directory, tuple(shards))


@contextlib.contextmanager
def _claimed(directory: Path, plan: dict[str, Any]) -> Iterator[Claim]:
    """Make the directory this setting's, and this process's while the context lasts.

    Raises:
        UserError: it holds something else, or another process is writing to it.
    """
    occupied = f"{directory}: exists and holds something other than samples; give another directory"
    if directory.exists() and not directory.is_dir():
        raise UserError(occupied)
    path = directory / SAMPLING_NAME
    identity = Identity(
        name=SAMPLING_NAME,
        text=json.dumps(plan, indent=2) + "\n",
        refusal=functools.partial(_refusal, directory, plan),
        made=functools.partial(_made, plan),
        occupied=lambda entry: occupied,
    )
    claim = Claim(Directory(str(directory.absolute())), identity)
    claim.check_ownership()
    claim.take()
    refusal = f"{directory}: another process is writing samples here; wait for it"
    with held(path, lambda path: os.open(path, os.O_RDWR), refusal):
        yield claim


def _refusal(directory: Path, plan: dict[str, Any], content: bytes, finished: bool) -> str | None:
    """How the plan that a directory was begun with differs."""
    del finished  # a plan holds nothing that may change later
    try:
        begun = parse_object(content)
    except ValueError:
        return f"{directory / SAMPLING_NAME} is damaged; delete it and repeat the command"
    begun = {**_unsaid(), **begun}
    name = next((name for name in plan if begun.get(name) != plan[name]), None)
    if name is None:
        return None
    return (
        f"{directory}: holds samples made with {name} {begun.get(name)}, not {plan[name]}; repeat "
        "with the same, give another directory, or delete this one"
    )


def _unsaid() -> dict[str, Any]:
    """Facts, as JSON has them, that a plan leaves out which was written before there were such."""
    defaults = {
        name: field.default
        for name, field in Sampling.model_fields.items()
        if not field.is_required()
    }
    return parse_object(json.dumps(defaults))


def _made(plan: dict[str, Any], manifest: Manifest) -> bool:
    """Whether a finished set is of these very samples, as its manifest tells."""
    facts = {name: plan[name] for name in manifest.sampling or {}}
    return manifest.sampling == facts and manifest.shards[0].records == min(
        plan["shard_size"], manifest.counts.written
    )


def _drop_cut_shards(directory: Path, manifest: Manifest) -> None:
    """Before the manifest of a set that has lost files goes: without it, who could tell?"""
    for shard in manifest.shards:
        path = directory / shard.name
        if path.is_file() and path.stat().st_size != shard.bytes:
            path.unlink()


def _whole_shard(
    setting: Setting, path: Path, records: int, progress: Callable[[int], object]
) -> ShardInfo | None:
    """A shard that is there. It appeared by renaming, and so is whole, unless a disk or a person
    broke it.
    """
    try:
        whole = path.is_file() and count_records(path) == records
    except UserError:
        return None
    counted = setting.sampler.nfe is not None or _count_path(path).is_file()
    if not whole or not counted:
        return None
    progress(records)
    size, digest = path.stat().st_size, sha256_file(path)
    return ShardInfo(name=path.name, split=SPLIT, records=records, bytes=size, sha256=digest)


def _write_shard(
    trained: "TrainedModel",
    setting: Setting,
    path: Path,
    span: tuple[int, int],
    batch_size: int,
    progress: Callable[[int], object],
) -> ShardInfo:
    specs = layout_tensors(Layout.LATENT, trained.run.latent_shape)

    def records() -> Iterator[bytes]:
        index, evaluations = span[0], 0
        for drawn in draw(trained, setting, *span, batch_size):
            for label, latent in zip(drawn.labels.tolist(), drawn.latents, strict=True):
                yield encode_record(f"{index:08d}", label, {"latent": latent}, specs)
                index += 1
            evaluations += int(drawn.evaluations.sum())
            progress(len(drawn.labels))
        if setting.sampler.nfe is None:  # before the shard, which so never stands without it
            write_atomic(_count_path(path), f"{evaluations}\n")

    written = write_shard(path, records())
    return ShardInfo(name=path.name, split=SPLIT, **written._asdict())


def _count_path(shard: Path) -> Path:
    return shard.with_name(f".{shard.name}{_COUNT_SUFFIX}")


def mean_evaluations(directory: Path, manifest: Manifest) -> float | None:
    """Network evaluations a sample of a finished sample set; None where they were counted and the
    counts are lost.
    """
    nfe = (manifest.sampling or {}).get("nfe")
    if nfe is not None:
        return float(nfe)
    counts = [_count_path(directory / shard.name) for shard in manifest.shards]
    if not all(path.is_file() for path in counts):  # a copy without its hidden files
        return None
    return sum(int(path.read_text()) for path in counts) / manifest.counts.written


def _finish(
    trained: "TrainedModel", setting: Setting, directory: Path, shards: tuple[ShardInfo, ...]
) -> Manifest:
    run, sampling = trained.run, sampling_facts(trained, setting)
    manifest = Manifest(
        layout=Layout.LATENT,
        split=SPLIT,
        resolution=run.dataset.resolution,
        crop="none",
        tensors=layout_tensors(Layout.LATENT, run.latent_shape),
        classes=run.classes,
        source=SourceInfo(descriptor="flowtrain:samples", split=SPLIT, digest=sampling.run),
        vae=run.vae,
        normalization=run.normalization,
        counts=Counts(source=setting.num, written=setting.num, rejected=0, duplicate=0),
        channels=_channel_statistics(directory, shards, run.latent_shape),
        shards=shards,
        seed=setting.sampler.seed,
        sampling=sampling.model_dump(mode="json"),
        command=equivalent_command(sampling, run.recipe),
        versions={name: installed_version(name) for name in ("jax", "numpy")},
    )
    counts: list[str] = []
    if setting.sampler.nfe is None:
        counts = [_count_path(Path(shard.name)).name for shard in shards]
    return finish_dataset(
        Directory(str(directory.absolute())), manifest, others=(SAMPLING_NAME, *counts)
    )


def _channel_statistics(
    directory: Path, shards: tuple[ShardInfo, ...], shape: tuple[int, int, int]
) -> ChannelStatistics:
    """Mean and deviation of the stored latents, summed in float64 in order of the shards."""
    specs = layout_tensors(Layout.LATENT, shape)
    count, total, square = 0, np.zeros(shape[2]), np.zeros(shape[2])
    for shard in shards:
        for serialized in read_shard(directory / shard.name):
            values = (
                decode_record(serialized, specs)
                .tensors["latent"]
                .astype(np.float64)
                .reshape(-1, shape[2])
            )
            count, total, square = (
                count + len(values),
                total + values.sum(0),
                square + np.square(values).sum(0),
            )
    mean = total / count
    std = np.sqrt(np.maximum(square / count - np.square(mean), 0.0))
    return ChannelStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
