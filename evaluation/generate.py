"""Samples of a trained model: in memory, or as a latent dataset written shard by shard.

Sample i depends on (seed, i) alone, so a shard can be made on its own, in any order, again after a kill. To the bit
that holds for one batch size and one kind of device; others round differently.
"""

import contextlib
import fcntl
import hashlib
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.results import Sampling
from schemas.config import BOOKKEEPING, ENDLESS_SCHEDULES, UNLEARNED
from schemas.errors import UserError
from schemas.files import sha256_file, write_atomic
from schemas.layout import Layout, layout_tensors
from schemas.manifest import MANIFEST_NAME, ChannelStatistics, Counts, Manifest, ShardInfo, SourceInfo, read_manifest
from schemas.record import encode_record
from schemas.run import Run
from schemas.tfds_metadata import shard_name
from schemas.versions import installed_version

if TYPE_CHECKING:
    from flowtrain.checkpoint import TrainedModel

SPLIT = "samples"
PLAN_NAME = ".plan.json"
BATCH_SIZE = 250
SHARD_SIZE = 500
CYCLIC = "cyclic"


@dataclass(frozen=True)
class Setting:
    """What to draw. `label` None: sample i has class i modulo the number of classes. `solver` goes with the run."""

    num: int
    steps: int
    cfg: float
    cfg_channels: int | None = None
    label: int | None = None
    seed: int = 0
    solver: str = "euler"

    @property
    def nfe(self) -> int:
        """Network evaluations a sample: one a step, whichever the solver; guidance takes another."""
        return self.steps * (1 if self.cfg == 1 else 2)

    def labels(self, indices: NDArray[np.int64], num_classes: int) -> NDArray[np.int32]:
        """(n,) classes of samples `indices` (n,)."""
        labels = indices % num_classes if self.label is None else np.full_like(indices, self.label)
        return labels.astype(np.int32)


def run_digest(run: Run) -> str:
    """SHA-256 of everything in run.json that the weights of a step depend on, and nothing of where and how it ran."""
    train = set(BOOKKEEPING)
    if run.recipe.optimizer.schedule in ENDLESS_SCHEDULES:
        train.add("steps")  # a run that was made longer is the same run
    recipe = {"sampler": True, "preview": True, "train": train, "model": set(UNLEARNED)}
    content = run.model_dump(mode="json", exclude={"dataset": {"path"}, "versions": True, "recipe": recipe})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sampling_facts(trained: "TrainedModel", setting: Setting) -> Sampling:
    """What the samples of a setting depend on."""
    classes = trained.run.classes
    return Sampling(
        run=run_digest(trained.run),
        step=trained.step,
        weights=trained.weights,
        sampler=setting.solver,
        steps=setting.steps,
        nfe=setting.nfe,
        cfg=setting.cfg,
        cfg_channels=setting.cfg_channels,
        labels=CYCLIC if setting.label is None else classes[setting.label],
        seed=setting.seed,
        num_samples=setting.num,
    )


def setting_name(sampling: Sampling) -> str:
    """A directory name for a sample set; one name a setting."""
    parts = [f"step{sampling.step}", sampling.weights, f"{sampling.sampler}{sampling.steps}", f"cfg{sampling.cfg:g}"]
    if sampling.cfg_channels is not None:
        parts.append(f"ch{sampling.cfg_channels}")
    if sampling.labels != CYCLIC:
        parts.append("class" + hashlib.sha256(sampling.labels.encode()).hexdigest()[:6])
    return "-".join([*parts, f"seed{sampling.seed}", f"n{sampling.num_samples}"])


def draw(
    trained: "TrainedModel", setting: Setting, start: int, stop: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float16]]]:
    """Samples [start, stop) in batches, as `draw_at`."""
    return draw_at(trained, setting, np.arange(start, stop, dtype=np.int64), batch_size)


def draw_at(
    trained: "TrainedModel", setting: Setting, numbers: NDArray[np.int64], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float16]]]:
    """The samples of some numbers (n,) in batches: labels (n,), latents (n, h, w, c) float16 in the model's scale.

    float16 is what a dataset of samples stores; rounding here makes every way of writing samples give the same pixels.

    Raises:
        UserError: the model gives numbers that are not finite.
    """
    from flowtrain.sampler import sample

    for begin in range(0, len(numbers), batch_size):
        indices = numbers[begin : begin + batch_size]
        labels = setting.labels(indices, len(trained.run.classes))
        latents = sample(
            trained,
            labels,
            indices,
            seed=setting.seed,
            steps=setting.steps,
            cfg=setting.cfg,
            cfg_channels=setting.cfg_channels,
            batch_size=batch_size,
            solver=setting.solver,
        )
        with np.errstate(over="ignore"):  # told below
            stored = latents.astype(np.float16)
        if not np.isfinite(stored).all():
            raise UserError(
                f"the weights of step {trained.step} give samples that are not finite (guidance {setting.cfg:g}, "
                f"{setting.steps} steps); lower --cfg, or take an earlier checkpoint with --step"
            )
        yield labels, stored


def fitting_batch_size(batch_size: int, num: int, shard_size: int = SHARD_SIZE) -> int:
    """At most a shard's records, and all that are asked for: more would be computed and thrown away."""
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

    Killed at any moment and repeated, it gives the same bytes; so it does where shards went missing or were cut.
    `progress` is called with numbers of samples done.

    Raises:
        UserError: the directory holds something else.
    """
    batch_size = fitting_batch_size(batch_size, setting.num, shard_size)
    plan = {**sampling_facts(trained, setting).model_dump(), "shard_size": shard_size, "batch_size": batch_size}
    with _claimed(directory, plan):
        found = _finished(directory)
        if found is not None:
            progress(setting.num)
            return found
        count = -(-setting.num // shard_size)
        shards = []
        for number in range(count):
            start, stop = number * shard_size, min((number + 1) * shard_size, setting.num)
            path = directory / shard_name(SPLIT, number, count)
            if _is_whole(path, stop - start):
                progress(stop - start)
            else:
                _write_shard(trained, setting, path, (start, stop), batch_size, progress)
            size, digest = path.stat().st_size, sha256_file(path)
            shards.append(ShardInfo(name=path.name, split=SPLIT, records=stop - start, bytes=size, sha256=digest))
        return _finish(trained, setting, directory, tuple(shards))


@contextlib.contextmanager
def _claimed(directory: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Make the directory this setting's, and this process's while the context lasts.

    Raises:
        UserError: it holds something else, or another process is writing to it.
    """
    path = directory / PLAN_NAME
    if not path.is_file():
        occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
        if occupied and not _plan_lost(directory, plan):
            raise UserError(f"{directory}: exists and holds something other than samples; give another directory")
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(plan, indent=2) + "\n")
    with open(path) as file:
        try:
            found = json.load(file)
        except ValueError:
            raise UserError(f"{path} is damaged; delete it and repeat the command") from None
        differing = [name for name in plan if found.get(name) != plan[name]]
        if differing:
            name = differing[0]
            raise UserError(
                f"{directory}: holds samples made with {name} {found.get(name)}, not {plan[name]}; "
                "repeat with the same, give another directory, or delete this one"
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it, however the process ends
        except BlockingIOError:
            raise UserError(f"{directory}: another process is writing samples here; wait for it") from None
        for left in directory.glob(".*.tmp"):  # half-written files of a killed process
            left.unlink()
        yield


def _plan_lost(directory: Path, plan: dict[str, Any]) -> bool:
    """Whether there is a finished set of these very samples, as its manifest tells."""
    if not (directory / MANIFEST_NAME).is_file():
        return False
    manifest = read_manifest(directory)
    facts = {name: plan[name] for name in manifest.sampling or {}}
    return manifest.sampling == facts and manifest.shards[0].records == min(plan["shard_size"], manifest.counts.written)


def _finished(directory: Path) -> Manifest | None:
    """The manifest, if every file it names is there; else it goes, with the shards it disagrees with."""
    from pipelines.dataset import dataset_whole

    if not (directory / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(directory)
    if dataset_whole(str(directory), manifest):
        return manifest
    (directory / MANIFEST_NAME).unlink()
    for shard in manifest.shards:
        path = directory / shard.name
        if path.is_file() and path.stat().st_size != shard.bytes:
            path.unlink()
    return None


def _is_whole(path: Path, records: int) -> bool:
    """Shards appear by renaming, so one that is there is whole, unless a disk or a person broke it."""
    from pipelines.shards import count_records

    try:
        return path.is_file() and count_records(path) == records
    except UserError:
        return False


def _write_shard(
    trained: "TrainedModel",
    setting: Setting,
    path: Path,
    span: tuple[int, int],
    batch_size: int,
    progress: Callable[[int], object],
) -> None:
    from pipelines.shards import write_shard

    specs = layout_tensors(Layout.LATENT, trained.run.latent_shape)

    def records() -> Iterator[bytes]:
        index = span[0]
        for labels, latents in draw(trained, setting, *span, batch_size):
            for label, latent in zip(labels.tolist(), latents, strict=True):
                yield encode_record(f"{index:08d}", label, {"latent": latent}, specs)
                index += 1
            progress(len(labels))

    write_shard(path, records())


def _finish(trained: "TrainedModel", setting: Setting, directory: Path, shards: tuple[ShardInfo, ...]) -> Manifest:
    from pipelines.dataset import finish_dataset
    from pipelines.storage import LocalDirectory

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
        seed=setting.seed,
        sampling=sampling.model_dump(),
        command=equivalent_command(sampling),
        versions={name: installed_version(name) for name in ("jax", "numpy")},
    )
    return finish_dataset(LocalDirectory(str(directory.absolute())), manifest, others=(PLAN_NAME,))


def _channel_statistics(
    directory: Path, shards: tuple[ShardInfo, ...], shape: tuple[int, int, int]
) -> ChannelStatistics:
    """Mean and deviation of the stored latents, summed in float64 in order of the shards."""
    from pipelines.shards import read_shard
    from schemas.record import decode_record

    specs = layout_tensors(Layout.LATENT, shape)
    count, total, square = 0, np.zeros(shape[2]), np.zeros(shape[2])
    for shard in shards:
        for serialized in read_shard(directory / shard.name):
            values = decode_record(serialized, specs).tensors["latent"].astype(np.float64).reshape(-1, shape[2])
            count, total, square = count + len(values), total + values.sum(0), square + np.square(values).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - np.square(mean), 0.0))
    return ChannelStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def equivalent_command(sampling: Sampling) -> str:
    """The command that makes these samples anywhere; WORKDIR stands for the run, OUT for the dataset."""
    words: list[Any] = [
        "flowtrain",
        "sample",
        "WORKDIR",
        "OUT",
        "--num",
        sampling.num_samples,
        "--steps",
        sampling.steps,
    ]
    words += ["--solver", sampling.sampler, "--cfg", f"{sampling.cfg:g}", "--seed", sampling.seed]
    words += ["--step", sampling.step, "--weights", sampling.weights]
    if sampling.cfg_channels is not None:
        words += ["--cfg-channels", sampling.cfg_channels]
    if sampling.labels != CYCLIC:
        words += ["--class", sampling.labels]
    return shlex.join(str(word) for word in words)
