"""Runs a Beam pipeline: in this process unless another runner is named."""

import contextlib
import importlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_provision_api_pb2, beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import (
    ExtendedProvisionInfo,
    FnApiRunner,
    RunnerResult,
)
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult, PipelineRunner, create_runner

from pipelines.runners.beam_noise import quiet_log, quiet_threads
from pipelines.runners.dataflow import Dataflow
from pipelines.runners.submission import Dask, Elsewhere, Portable, one_line, worker_died
from schemas.errors import UserError

IN_PROCESS = ("DirectRunner", "FnApiRunner")
ELSEWHERE: dict[str, Elsewhere] = {
    "DaskRunner": Dask(),
    "DataflowRunner": Dataflow(),
    "PortableRunner": Portable(),
}
# a runner that Beam knows and we know nothing of, like those that start a job server of their own
_OTHER = Elsewhere()
_ALIASES = {name.lower(): name for name in (*IN_PROCESS, *ELSEWHERE)}


def run_pipeline(
    define: Callable[[beam.Pipeline], object], beam_args: Sequence[str] = ()
) -> PipelineResult:
    """Build a pipeline with `define` and run it to its end.

    Args:
        define: adds the transforms.
        beam_args: Beam's own options. Without `--runner`, or with the direct runner, the pipeline
            runs in this process (`--direct_running_mode=multi_processing --direct_num_workers=N`
            makes more).

    Raises:
        UserError: a runner or an option that Beam does not know, a service that does not answer, a
            worker process that died, a job that failed elsewhere.
        Exception: what a transform raised in this process; Beam hands most of it on as a
            RuntimeError with the trace as its text.
    """
    runner, options = parse_options(beam_args)
    name = runner_name(options)
    elsewhere = None if name in IN_PROCESS else ELSEWHERE.get(name, _OTHER)
    if elsewhere is not None:
        elsewhere.check(options, {})
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
    except ValueError as error:  # from Beam's validators, several lines of it
        raise UserError(f"{name} refuses these options: {one_line(error)}") from error
    # For files of transforms in other languages, of which there are none here. Beam deletes it when
    # the pipeline has run; a kill would leave it.
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
    define(pipeline)
    if elsewhere is not None:
        elsewhere.settle(pipeline)
    try:
        with quiet_threads():
            result = pipeline.run()
            result.wait_until_finish()
    except Exception as error:
        if worker_died(error):
            raise UserError(
                "a worker process died (out of memory?); repeat the command to go on"
            ) from error
        if elsewhere is None:
            raise
        reason = elsewhere.explain(error, options) or f"the job failed: {one_line(error)}"
        raise UserError(f"{name}: {reason}; repeat the command to go on") from error
    if elsewhere is not None:
        elsewhere.close(result)
    return result


def check_runner(beam_args: Sequence[str], places: Mapping[str, str]) -> None:
    """Look at all that can be known to go wrong before a job is made and anything is written.

    Args:
        beam_args: Beam's own options.
        places: what the workers will read and write, by the name the user knows it by: OUT, SOURCE,
            --vae.

    Raises:
        UserError: wrong options, a service that does not answer, a place that the workers cannot
            reach.
    """
    _, options = parse_options(beam_args)
    name = runner_name(options)
    if name not in IN_PROCESS:
        ELSEWHERE.get(name, _OTHER).check(options, places)


def only_builds(beam_args: Sequence[str]) -> bool:
    """Whether the options ask for a job that is built and looked at, and not submitted."""
    return bool(parse_options(beam_args)[1].view_as(TestOptions).dry_run)


def parse_options(beam_args: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """The runner and its options; Beam's file systems get them too, for object stores.

    Beam itself would pass over what it does not know with a warning.

    Raises:
        UserError: an unknown runner, one whose extra is not installed, or an unknown or malformed
            option.
    """
    complaint = io.StringIO()
    try:
        with quiet_log(), contextlib.redirect_stderr(complaint):
            options = PipelineOptions(list(beam_args))
            name = runner_name(options)
            # its import may define more options
            other = None if name in IN_PROCESS else _make(name, options)
            known = options.get_all_options()
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    except SystemExit:  # argparse has printed its usage, and what is wrong in the last line
        reason = complaint.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"Beam does not take these options: {reason}") from None
    if unknown:
        raise UserError(
            f"Beam does not know the option --{min(unknown)}; options after -- go to Beam"
        )
    if options.view_as(TestOptions).dry_run and name != "DataflowRunner":
        raise UserError(
            "Beam's --dry_run is for --runner=DataflowRunner; --dry-run, before --, prints the plan"
        )
    FileSystems.set_options(options)
    return other or _local_runner(options), options


def runner_name(options: PipelineOptions) -> str:
    """The runner's class name, from a name in any case and without `Runner`."""
    given = options.view_as(StandardOptions).runner or IN_PROCESS[0]
    last = given.rpartition(".")[2].lower()
    return _ALIASES.get(last) or _ALIASES.get(f"{last}runner") or given


def _make(name: str, options: PipelineOptions) -> PipelineRunner:
    elsewhere = ELSEWHERE.get(name, _OTHER)
    if elsewhere.module:
        try:
            importlib.import_module(elsewhere.module)
        except ImportError as error:
            raise UserError(
                f"{name} needs what is not installed here ({error}); pip install "
                f"'flowtrain[{elsewhere.extra}]'"
            ) from error
    try:
        return create_runner(elsewhere.path or options.view_as(StandardOptions).runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"Beam cannot make this runner: {error}") from error


def _local_runner(options: PipelineOptions) -> PipelineRunner:
    workers = options.view_as(WorkerOptions)
    if workers.default_sdk_harness_log_level is None:
        workers.default_sdk_harness_log_level = "WARNING"
    # DirectRunner would first try to download another runner. Worker processes get their options
    # from the provision info and from nowhere else; without it they would lose, for example, the
    # credentials of an object store.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return _LocalRunner(provision_info=ExtendedProvisionInfo(provision))


class _LocalRunner(FnApiRunner):
    """Beam's runner in this process, with worker processes that end when this process is killed."""

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> RunnerResult:
        """Begin worker processes through `pipelines.runners.worker`, by `exec` without a shell."""
        command = f"exec {shlex.quote(sys.executable)} -m pipelines.runners.worker {os.getpid()}"
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.payload = command.encode()
        return super().run_via_runner_api(pipeline_proto, options)
