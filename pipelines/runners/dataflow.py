"""Google Cloud Dataflow: a job's requirements, defaults for this work, and built jobs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.runner import PipelineResult

from pipelines.runners.submission import Elsewhere
from schemas.errors import UserError

# of a source, before its path; the scheme of a URL is not one
_KIND = re.compile(r"^[a-z]+:(?!//)")
# shards at once on a machine: one is encoded while the other begins or is uploaded
HARNESS_THREADS = 2
REMEDIES = {
    "OUT": "give gs://BUCKET/PATH",
    "SOURCE": "copy it to gs:// and name it there",
    "--vae": "give a hub id, or embedded",
}


class Dataflow(Elsewhere):
    """Machines of Google's, which see neither this disk nor this Python environment."""

    extra = "cloud"
    module = "apache_beam.runners.dataflow.internal.apiclient"

    def check(self, options: PipelineOptions, places: Mapping[str, str]) -> None:
        """See `Elsewhere`."""
        cloud = options.view_as(GoogleCloudOptions)
        _check_project(cloud)
        _check_packages(options, cloud)
        for name, place in places.items():
            if is_local(place):
                raise UserError(
                    f"{name} {place} is on this machine, where Dataflow cannot reach it; "
                    f"{REMEDIES[name]}"
                )

    def settle(self, pipeline: beam.Pipeline) -> None:
        """See `Elsewhere`. By default Dataflow starts a process a core, each of which would hold
        the VAE.

        What workers call lies in modules that they import, so that nothing of the command's own
        state need travel.
        """
        pipeline.options.view_as(SetupOptions).save_main_session = False
        debug = pipeline.options.view_as(DebugOptions)
        containers = ("use_multiple_sdk_containers", "no_use_multiple_sdk_containers")
        if not set(containers) & set(debug.experiments or ()):
            debug.add_experiment(containers[1])
        if not debug.number_of_worker_harness_threads:
            debug.number_of_worker_harness_threads = HARNESS_THREADS


def _check_project(cloud: GoogleCloudOptions) -> None:
    """Refuse a job without a project and a region, or with files elsewhere than on GCS."""
    needed = {
        "project": cloud.project,
        "region": cloud.region,
        "temp_location": cloud.temp_location,
    }
    missing = [f"--{name}" for name, value in needed.items() if not value]
    if missing:
        raise UserError(
            f"DataflowRunner needs {', '.join(missing)}; docs/runners.md has a whole command"
        )
    for name, place in {
        "temp_location": cloud.temp_location,
        "staging_location": cloud.staging_location,
    }.items():
        if place and not place.startswith("gs://"):
            raise UserError(f"--{name}={place}: Dataflow wants gs://BUCKET/PATH here")


def _check_packages(options: PipelineOptions, cloud: GoogleCloudOptions) -> None:
    """Refuse workers that would have neither this package nor, on GPUs, CUDA."""
    setup = options.view_as(SetupOptions)
    image = options.view_as(WorkerOptions).sdk_container_image
    if not (image or setup.setup_file or setup.extra_packages):
        raise UserError(
            "DataflowRunner needs this package on its workers: --sdk_container_image=IMAGE, built "
            "from dataflow/Dockerfile, or, for CPUs and slower to start, --extra_package=WHEEL "
            "(pip wheel --no-deps .)"
        )
    services = cloud.dataflow_service_options or ()
    if not image and any("worker_accelerator" in option for option in services):
        raise UserError(
            "GPUs on Dataflow need --sdk_container_image=IMAGE, built from dataflow/Dockerfile "
            "with --build-arg EXTRAS=cloud,cuda"
        )


@dataclass(frozen=True)
class BuiltJob:
    """A job that was built and not submitted.

    Attributes:
        name: of the job.
        steps: top-level transforms, in order.
        image: what the workers run.
        graph_bytes: size of the graph; the service takes about 10 MB.
    """

    name: str
    steps: tuple[str, ...]
    image: str
    graph_bytes: int


def built_job(result: PipelineResult) -> BuiltJob:
    """What `--dry_run=True` leaves in the result of a run."""
    job = result.job  # pyright: ignore[reportAttributeAccessIssue]
    graph = job.proto_pipeline
    transforms = graph.components.transforms
    (root,) = (transforms[name] for name in graph.root_transform_ids)
    images = {
        beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
        for environment in graph.components.environments.values()
    }
    return BuiltJob(
        name=job.options.view_as(GoogleCloudOptions).job_name,
        steps=tuple(transforms[name].unique_name for name in root.subtransforms),
        image=", ".join(sorted(images)),
        graph_bytes=graph.ByteSize(),
    )


def is_local(place: str) -> bool:
    """Whether a directory, source or VAE is on this machine: it names an absolute path."""
    return any(PurePath(_KIND.sub("", part)).is_absolute() for part in place.split(","))
