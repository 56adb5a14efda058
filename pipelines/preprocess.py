"""The Beam pipeline from images to a latent dataset: one element a shard, a linear graph, work that can be repeated.

A shard is a pure function of its slice of the index, the encoder and the settings (`pipelines.work`), so the bytes
depend neither on the runner, nor on the number of workers, nor on how often the run was killed.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.utils.shared import Shared

from pipelines.encoders import Encoder, load_encoder
from pipelines.finish import RESULTS_NAME, finish, forget_failure, read_failure
from pipelines.index import INDEX_NAME, write_index
from pipelines.lock import exclusive
from pipelines.plan import Plan
from pipelines.progress import ProgressBar
from pipelines.results import ShardFailure, ShardResult, write_marker
from pipelines.runner import parse_options, run_pipeline
from pipelines.settings import SETTINGS_NAME, Settings, check_ownership, differences, read_settings, write_settings
from pipelines.storage import LocalDirectory, cannot_write
from pipelines.work import Slice, make_shard
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, Manifest, read_manifest

NAMESPACE = "preprocess"


@dataclass(frozen=True)
class Config:
    """What the graph needs; small enough to travel in it."""

    directory: LocalDirectory
    settings: Settings
    slices: tuple[Slice, ...]
    max_bad_fraction: float
    min_psnr: float


def define_pipeline(root: beam.Pipeline, config: Config) -> None:
    """The whole graph. One output per transform: what branches is silently wrong on some runners."""
    _ = (
        root
        | "Slices" >> beam.Create(config.slices)
        | "Spread" >> beam.Reshuffle()
        | "Encode" >> beam.ParDo(EncodeShard(config.directory, config.settings))
        | "Merge" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Finish"
        >> beam.Map(
            functools.partial(finish, config.directory, config.settings, config.max_bad_fraction, config.min_psnr)
        )
    )


class EncodeShard(beam.DoFn):
    """Makes one shard an element. The encoder is loaded on the first shard that is not done, once a process."""

    def __init__(self, directory: LocalDirectory, settings: Settings):
        self._directory = directory
        self._settings = settings
        self._shared = Shared()
        self._encoder: Encoder | None = None  # Shared holds it weakly

    def process(self, element: Slice) -> Iterator[ShardResult | ShardFailure]:
        """See `pipelines.work.make_shard`."""
        outcome = make_shard(self._directory, self._settings, element, self._load)
        _count(outcome)
        yield outcome

    def _load(self) -> Encoder:
        encoder = self._shared.acquire(lambda: load_encoder(self._settings))
        self._encoder = encoder
        return encoder


def _count(outcome: ShardResult | ShardFailure) -> None:
    """Beam counters, for runners that show them; the truth is in the results."""
    if isinstance(outcome, ShardFailure):
        Metrics.counter(NAMESPACE, "failed shards").inc()
        return
    counts = {
        "read": outcome.items,
        "decoded": outcome.items - sum(reject.exception != "OverflowError" for reject in outcome.rejects),
        "encoded": outcome.records,
        "rejected": len(outcome.rejects),
        "bytes": sum(file.bytes for file in outcome.files),
    }
    for name, value in counts.items():
        Metrics.counter(NAMESPACE, name).inc(value)


def preprocess(plan: Plan, beam_args: Sequence[str] = (), *, progress: bool | None = None) -> Manifest:
    """Make the dataset, or what is missing of it.

    Args:
        plan: what to make.
        beam_args: options for Beam.
        progress: show a bar on stderr; None where stderr is a terminal.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UserError: the directory is in use or belongs to something else, too many images are bad, the reconstruction is
            poor, a shard could not be made. Finished shards stay, and the same command goes on from them.
    """
    directory, settings, request = plan.directory, plan.settings, plan.request
    parse_options(beam_args)  # before anything is written
    with exclusive(directory):
        check_ownership(directory, settings)  # again: another command may have come first
        directory.sweep()
        done = plan.finished_manifest()
        if done is not None:  # the run that wrote the manifest was killed, or was faster than we
            directory.clear_work()
            return done
        try:
            _prepare(plan)
        except OSError as error:
            raise UserError(cannot_write(directory, error)) from error
        ranges = [settings.shard_range(shard) for shard in range(settings.shards)]
        config = Config(directory, settings, make_slices(plan), request.max_bad_fraction, request.min_psnr)
        with ProgressBar(directory, [stop - start for start, stop in ranges], progress):
            run_pipeline(functools.partial(define_pipeline, config=config), beam_args)
        failure = read_failure(directory)
        if failure is not None:
            raise UserError(failure)
        manifest = read_manifest(directory.local())
        directory.clear_work()
    return manifest


def _prepare(plan: Plan) -> None:
    """Bring the directory to the state in which shards can be made: half-made, with settings and index."""
    directory = plan.directory
    if plan.finished:
        _reopen(directory, plan.settings)
    if not directory.exists(SETTINGS_NAME):
        write_settings(directory, plan.settings)
    if not directory.exists(INDEX_NAME):
        write_index(directory, plan.index)
    forget_failure(directory)


def make_slices(plan: Plan) -> tuple[Slice, ...]:
    """The units of work: byte ranges of the index file, so that a worker reads its own items only."""
    bounds = [plan.settings.shard_range(shard)[0] for shard in range(plan.settings.shards)]
    offsets = plan.index.offsets([*bounds, plan.settings.records])
    return tuple(Slice(shard, start, stop - start) for shard, (start, stop) in enumerate(itertools.pairwise(offsets)))


def _reopen(directory: LocalDirectory, settings: Settings) -> None:
    """Make a finished dataset with a missing or truncated file half-made again: only that shard will be redone.

    Raises:
        UserError: it was made with other versions, which might give other bytes.
    """
    begun = read_settings(directory)
    if begun is None:  # lost; whose dataset it is has been told from its manifest
        write_settings(directory, settings)
    elif begun != settings:
        changed = differences(begun, settings)
        raise UserError(
            f"{directory.root} has damaged shards, but was made with other versions ({'; '.join(changed)}); "
            "install those, or preprocess into a new directory"
        )
    if directory.exists(RESULTS_NAME):
        for line in directory.read(RESULTS_NAME).splitlines():
            write_marker(directory, ShardResult.model_validate_json(line))
    directory.remove(MANIFEST_NAME)
