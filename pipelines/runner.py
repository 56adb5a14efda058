"""Runs a Beam pipeline: in this process unless another runner is named."""

from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from schemas.errors import UserError

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")


def run_pipeline(define: Callable[[beam.Pipeline], None], beam_args: Sequence[str] = ()) -> PipelineResult:
    """Build a pipeline with `define` and run it to its end.

    Args:
        define: adds the transforms.
        beam_args: Beam's own options. Without `--runner`, or with the direct runner, the pipeline runs in this process
            (`--direct_running_mode=multi_processing --direct_num_workers=N` makes more).

    Raises:
        UserError: options that Beam does not know.
        RuntimeError: the pipeline failed.
    """
    options = parse_options(beam_args)
    pipeline = beam.Pipeline(runner=_make_runner(options), options=options)
    define(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return result


def parse_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options, every one of them known to this Beam.

    Raises:
        UserError: an unknown or malformed option.
    """
    options = PipelineOptions(list(beam_args))
    try:
        options.get_all_options()
    except SystemExit:  # argparse has printed its usage line
        raise UserError(f"not valid Beam options: {' '.join(beam_args)}") from None
    return options


def _make_runner(options: PipelineOptions) -> str | PipelineRunner:
    name = options.view_as(StandardOptions).runner
    if name not in LOCAL_RUNNERS:
        return name
    # DirectRunner would first try to download another runner. Worker processes get their options from the provision
    # info and from nowhere else; without it they would lose, for example, the credentials of an object store.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return FnApiRunner(provision_info=ExtendedProvisionInfo(provision))
