"""The Beam pipeline from images to a latent dataset: one element a shard, a linear graph, work that
can be repeated.

A shard is a pure function of its slice of the index, the encoder and the settings
(`pipelines.preprocess.make_shard`), so the bytes depend neither on the runner, nor on the number of
workers, nor on how often the run was killed.
"""

import functools
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.utils.shared import Shared

from pipelines.dataset.lock import exclusive
from pipelines.dataset.shard_results import ShardFailure, ShardResult, drop_damaged_results
from pipelines.encoders.encode import Encoder, load_encoder
from pipelines.preprocess.finish import finish, take_failure
from pipelines.preprocess.index import index_is, write_index
from pipelines.preprocess.make_shard import Slice, make_shard
from pipelines.preprocess.plan import Plan
from pipelines.preprocess.progress import ProgressBar, Ticker
from pipelines.preprocess.settings import Settings, differences, read_settings
from pipelines.runners.dataflow import BuiltJob, built_job
from pipelines.runners.runner import check_runner, run_pipeline
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.storage.directory import Directory, reported

NAMESPACE = "preprocess"
COUNTERS = ("read", "decoded", "encoded", "rejected", "bytes")


@dataclass(frozen=True)
class Config:
    """What the graph needs; small enough to travel in it.

    `ticks` is a local folder for the progress of shards, `run` tells this run from others in the
    same directory.
    """

    directory: Directory
    settings: Settings
    slices: tuple[Slice, ...]
    max_bad_fraction: float
    min_psnr: float
    ticks: str | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def failure_name(self) -> str:
        """Where `finish` tells why there is no dataset."""
        return f"{self.settings.work}/failure-{self.run}.txt"


def define_pipeline(root: beam.Pipeline, config: Config) -> None:
    """The whole graph. One output per transform: what branches is silently wrong on some
    runners.
    """
    finishing = (
        config.directory,
        config.settings,
        config.max_bad_fraction,
        config.min_psnr,
        config.failure_name,
    )
    _ = (
        root
        | "Slices" >> beam.Create(config.slices)
        | "Spread" >> beam.Reshuffle()
        | "Encode" >> beam.ParDo(EncodeShard(config.directory, config.settings, config.ticks))
        | "Merge" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Finish" >> beam.Map(functools.partial(finish, *finishing))
    )


class EncodeShard(beam.DoFn):
    """Makes one shard an element. The encoder is loaded on the first shard that is not done, once a
    process.

    Counts what it does in Beam's counters, for runners that show them; the truth is in the results.
    """

    def __init__(self, directory: Directory, settings: Settings, ticks: str | None):
        self._directory = directory
        self._settings = settings
        self._ticks = ticks
        self._shared = Shared()
        self._encoder: Encoder | None = None  # Shared holds it weakly

    def process(self, element: Slice) -> Iterator[ShardResult | ShardFailure]:
        """See `pipelines.preprocess.make_shard.make_shard`."""
        ticker = Ticker(self._ticks, element.shard)

        def count(name: str, more: int) -> None:
            Metrics.counter(NAMESPACE, name).inc(more)
            if name in ("encoded", "rejected"):
                ticker.add(more)

        for name in COUNTERS:
            count(name, 0)  # what did not happen is shown as well
        outcome = make_shard(self._directory, self._settings, element, self._load, count)
        if isinstance(outcome, ShardFailure):
            Metrics.counter(NAMESPACE, "failed shards").inc()
        yield outcome

    def _load(self) -> Encoder:
        encoder = self._shared.acquire(lambda: load_encoder(self._settings.vae))
        self._encoder = encoder
        return encoder


def preprocess(
    plan: Plan, beam_args: Sequence[str] = (), *, progress: bool | None = None
) -> Manifest:
    """Make the dataset, or what is missing of it.

    Args:
        plan: what to make.
        beam_args: options for Beam.
        progress: show a bar on stderr; None where stderr is a terminal.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UserError: the directory is in use or belongs to something else, too many images are bad,
            the reconstruction is poor, a shard could not be made. Finished shards stay, and the
            same command goes on from them.
    """
    directory, build = plan.directory, plan.build
    check_runner(beam_args, _places(plan))  # before anything is written
    with exclusive(directory):
        with reported(directory):
            done = build.resume(functools.partial(_reopen, plan), plan.accept)
            # else the run that wrote the manifest was killed, or was faster than we
            if done is None:
                build.prepare(
                    lambda name: write_index(directory, name, plan.index),
                    lambda name: index_is(directory, name, plan.index),
                )
        if done is None:
            config = _run(plan, beam_args, progress)
            done = _outcome(plan, config)
        with reported(directory):
            build.clear_away()
    return done


def build_job(plan: Plan, beam_args: Sequence[str]) -> BuiltJob:
    """Build the job that `preprocess` would submit with these options, which hold Dataflow's
    `--dry_run=True`.

    Nothing is written: neither settings nor index, which the job's workers would read.

    Raises:
        UserError: the options do not make a job.
    """
    check_runner(beam_args, _places(plan))
    request = plan.request
    config = Config(
        plan.directory, plan.settings, make_slices(plan), request.max_bad_fraction, request.min_psnr
    )
    return built_job(run_pipeline(functools.partial(define_pipeline, config=config), beam_args))


def _places(plan: Plan) -> dict[str, str]:
    """What workers read and write, by the names that the user knows."""
    vae = {} if plan.settings.vae is None else {"--vae": plan.settings.vae.id}
    return {"OUT": plan.directory.root, "SOURCE": plan.settings.source.descriptor, **vae}


def _run(plan: Plan, beam_args: Sequence[str], progress: bool | None) -> Config:
    """Run the pipeline in a directory that is prepared."""
    settings, request = plan.settings, plan.request
    ranges = [settings.shard_range(shard) for shard in range(settings.shards)]
    with ProgressBar(
        plan.directory, settings.work, [stop - start for start, stop in ranges], progress
    ) as bar:
        slices = make_slices(plan)
        config = Config(
            plan.directory, settings, slices, request.max_bad_fraction, request.min_psnr, bar.ticks
        )
        run_pipeline(functools.partial(define_pipeline, config=config), beam_args)
    return config


def _outcome(plan: Plan, config: Config) -> Manifest:
    """What has become of the directory by a run.

    Raises:
        UserError: why there is no dataset.
    """
    with reported(plan.directory):
        failure = take_failure(plan.directory, config.failure_name)
    # In an object store another command may have finished the dataset meanwhile, and cleared our
    # work away.
    manifest = plan.finished_manifest()
    if manifest is None:
        raise UserError(
            failure or f"{plan.directory.root} has lost files again; repeat the command"
        )
    return manifest


def make_slices(plan: Plan) -> tuple[Slice, ...]:
    """The units of work: byte ranges of the index file, so that a worker reads its own items
    only.
    """
    bounds = [plan.settings.shard_range(shard)[0] for shard in range(plan.settings.shards)]
    offsets = plan.index.offsets([*bounds, plan.settings.records])
    return tuple(
        Slice(shard, start, stop - start)
        for shard, (start, stop) in enumerate(itertools.pairwise(offsets))
    )


def _reopen(plan: Plan, manifest: Manifest) -> None:
    """Before a finished dataset with a missing or truncated file is half-made again.

    Raises:
        UserError: it was made with other versions, which might give other bytes.
    """
    directory = plan.directory
    begun = read_settings(directory)
    if begun is not None and begun != plan.settings:
        changed = differences(begun, plan.settings)
        raise UserError(
            f"{directory.root} has damaged shards, but was made with other versions "
            f"({'; '.join(changed)}); "
            "install those, or preprocess into a new directory"
        )
    drop_damaged_results(directory, manifest)
