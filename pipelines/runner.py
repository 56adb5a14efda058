"""Runs a Beam pipeline: in this process unless another runner is named."""

import contextlib
import io
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult, PipelineRunner, create_runner

from pipelines.quiet import quiet_log
from schemas.errors import UserError

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")


def run_pipeline(define: Callable[[beam.Pipeline], None], beam_args: Sequence[str] = ()) -> PipelineResult:
    """Build a pipeline with `define` and run it to its end.

    Args:
        define: adds the transforms.
        beam_args: Beam's own options. Without `--runner`, or with the direct runner, the pipeline runs in this process
            (`--direct_running_mode=multi_processing --direct_num_workers=N` makes more).

    Raises:
        UserError: a runner or an option that Beam does not know, or a worker process that died.
        Exception: what a transform raised; Beam hands most of it on as a RuntimeError with the trace as its text.
    """
    runner, options = parse_options(beam_args)
    pipeline = beam.Pipeline(runner=runner, options=options)
    define(pipeline)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except RuntimeError as error:
        if "Channel closed prematurely" in str(error):
            raise UserError("a worker process died (out of memory?); repeat the command to go on") from error
        raise
    return result


def parse_options(beam_args: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """The runner, and its options. Beam itself would pass over what it does not know with a warning.

    Raises:
        UserError: an unknown runner, or an unknown or malformed option.
    """
    complaint = io.StringIO()
    try:
        with quiet_log(), contextlib.redirect_stderr(complaint):
            options = PipelineOptions(list(beam_args))
            name = options.view_as(StandardOptions).runner
            other = None if name in LOCAL_RUNNERS else create_runner(name)  # its import may define more options
            known = options.get_all_options()
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    except SystemExit:  # argparse has printed its usage, and what is wrong in the last line
        reason = complaint.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"Beam does not take these options: {reason}") from None
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"Beam cannot make this runner: {error}") from error
    if unknown:
        raise UserError(f"Beam does not know the option --{min(unknown)}; options after -- go to Beam")
    return other or _local_runner(options, known), options


def _local_runner(options: PipelineOptions, known: dict[str, object]) -> PipelineRunner:
    workers = options.view_as(WorkerOptions)
    if workers.default_sdk_harness_log_level is None:
        workers.default_sdk_harness_log_level = "WARNING"
    # DirectRunner would first try to download another runner. Worker processes get their options from the provision
    # info and from nowhere else; without it they would lose, for example, the credentials of an object store.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return FnApiRunner(provision_info=ExtendedProvisionInfo(provision))
