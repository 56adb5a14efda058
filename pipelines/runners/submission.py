"""Runners that work in other processes: their requirements and their failures."""

import atexit
import logging
import os
import re
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.runner import PipelineResult

from schemas.errors import UserError

JOB_SERVICE = "python -m apache_beam.runners.portability.local_job_service_main --port=PORT"
WORKER_POOL = "python -m apache_beam.runners.worker.worker_pool_main --service_port=PORT"
# at most; Dask's grouping makes tasks faster than in proportion to them (1281: 75 s)
DASK_PARTITIONS = 128
_PATIENCE = 5.0  # seconds to wait for a service to answer


class Elsewhere:
    """A runner that hands the job to other processes. This one needs nothing.

    Attributes:
        path: of Beam's class, where its name alone does not find it.
        extra: of this package that brings what the runner imports.
        module: what fails to import where the extra is missing.
    """

    path = ""
    extra = ""
    module = ""

    def check(self, options: PipelineOptions, places: Mapping[str, str]) -> None:
        """Refuse options that cannot work. `places` are what workers read and write, by name.

        Raises:
            UserError: something is missing or out of reach.
        """

    def settle(self, pipeline: beam.Pipeline) -> None:
        """Fill in options that the user left open, in the pipeline's own copy of them."""

    def explain(self, error: Exception, options: PipelineOptions) -> str | None:
        """What an error of the run means and what to do, when it is more than its own text says."""

    def close(self, result: PipelineResult) -> None:
        """End what the run has started."""


class Portable(Elsewhere):
    """A job service that Beam speaks to over gRPC: its own local one, Flink's or Spark's."""

    def check(self, options: PipelineOptions, places: Mapping[str, str]) -> None:
        """See `Elsewhere`. Beam would wait five minutes for a service that is not there."""
        endpoint = options.view_as(PortableOptions).job_endpoint
        if not endpoint:
            raise UserError(
                "PortableRunner needs the job service of a runner: --job_endpoint=HOST:PORT; "
                f"`{JOB_SERVICE}` starts Beam's own"
            )
        if endpoint != "embed":
            _reach(
                endpoint,
                f"no job service answers at --job_endpoint={endpoint}; start it, for one "
                f"`{JOB_SERVICE}`",
            )

    def settle(self, pipeline: beam.Pipeline) -> None:
        """See `Elsewhere`. Logs of workers in this process come back in the job's failure."""
        if pipeline.options.view_as(PortableOptions).environment_type == "LOOPBACK":
            logging.getLogger("apache_beam.runners.worker").setLevel(logging.CRITICAL)

    def explain(self, error: Exception, options: PipelineOptions) -> str | None:
        """See `Elsewhere`."""
        portable = options.view_as(PortableOptions)
        if type(error).__module__.startswith("grpc"):
            if portable.environment_type == "LOOPBACK":
                # Threads of this process still encode for the job that is gone. Python would stop
                # them in the middle of compiled code, which aborts the process with a message of
                # its own.
                atexit.register(os._exit, 2)
            return (
                f"the job service at {portable.job_endpoint} is gone ({one_line(error)}); start it "
                "again"
            )
        if "StatusCode.UNAVAILABLE" in str(error) and portable.environment_type == "EXTERNAL":
            return (
                f"no worker pool answers at {portable.environment_config}; start it there: "
                f"`{WORKER_POOL}`"
            )
        if "docker" in one_line(error):
            return (
                f"the container of the workers did not start ({one_line(error)}); "
                "--environment_config=IMAGE names it, --environment_type=LOOPBACK works in this "
                "process instead"
            )
        return None


class Dask(Elsewhere):
    """A Dask cluster, or one on this machine when no address is given."""

    path = "apache_beam.runners.dask.dask_runner.DaskRunner"
    extra = "dask"
    module = path.rpartition(".")[0]

    def check(self, options: PipelineOptions, places: Mapping[str, str]) -> None:
        """See `Elsewhere`."""
        address = self._options(options).address
        if address:
            _reach(
                address,
                f"no Dask scheduler answers at --dask_client_address={address}; `dask scheduler` "
                "starts one",
            )

    def settle(self, pipeline: beam.Pipeline) -> None:
        """See `Elsewhere`. Beam would put 128 elements into one partition, which is one task."""
        chosen = self._options(pipeline.options)
        if not chosen.npartitions and not chosen.partition_size:
            counter = _CountElements()
            pipeline.visit(counter)
            chosen.partition_size = -(-max(counter.elements, 1) // DASK_PARTITIONS)

    def close(self, result: PipelineResult) -> None:
        """See `Elsewhere`. The client closes the cluster that it has started."""
        result.client.close()  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def _options(options: PipelineOptions) -> Any:
        from apache_beam.runners.dask.dask_runner import DaskOptions

        return options.view_as(DaskOptions)


class _CountElements(PipelineVisitor):
    """The number of elements that a pipeline begins with."""

    def __init__(self) -> None:
        self.elements = 0

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        if isinstance(transform_node.transform, beam.Create):
            self.elements += len(transform_node.transform.values)


def worker_died(error: Exception) -> bool:
    """Whether a worker process ended by itself, or was killed."""
    return "Channel closed prematurely" in str(error) or type(error).__name__ == "KilledWorker"


def one_line(error: Exception) -> str:
    """An error's most telling line: a trace's last, or the details of a remote call."""
    text = str(error).strip()
    details = re.findall(r'^\s*details = "(.*)"', text, re.MULTILINE)
    lines = details or [
        line for line in text.splitlines() if re.match(r"[A-Za-z_][\w.]*(?:: |$)", line)
    ]
    return (lines or text.splitlines() or [type(error).__name__])[-1].strip()


def _reach(endpoint: str, otherwise: str) -> None:
    """Open a connection to HOST:PORT, or to a URL with both, and close it again.

    Raises:
        UserError: `otherwise`, when there is no answer.
    """
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        socket.create_connection(
            (parts.hostname or "localhost", parts.port or 0), _PATIENCE
        ).close()
    except (OSError, ValueError) as error:
        raise UserError(f"{otherwise} ({error})") from None
