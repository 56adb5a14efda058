"""The Dataflow job, built and looked at offline, and the image of its workers, read."""

import functools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from packaging.requirements import Requirement

from pipelines.preprocess.make_shard import Slice
from pipelines.preprocess.pipeline import Config, define_pipeline
from pipelines.runners.dataflow import built_job, is_local
from pipelines.runners.runner import check_runner, only_builds, run_pipeline
from schemas.errors import UserError
from schemas.manifest import VaeInfo
from schemas.storage import paths
from schemas.storage.directory import Directory
from tests.pipelines.running import plan, run
from tests.pipelines.servers import Store

pytest.importorskip("google.cloud.dataflow", reason="Dataflow: pip install 'flowtrain[cloud]'")

ROOT = Path(__file__).resolve().parents[3]
IMAGE = "us-central1-docker.pkg.dev/project/flowtrain/worker:1"
PLACE = ["--project=project", "--region=us-central1", "--temp_location=gs://bucket/temp"]
SUBMISSION = ["--runner=DataflowRunner", *PLACE, f"--sdk_container_image={IMAGE}"]
GPU = [
    "--machine_type=g2-standard-8",
    "--max_num_workers=16",
    "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx",
]
IMAGENET, SHARDS = 1_281_167, 1281
VAE = VaeInfo(
    id="stabilityai/sd-vae-ft-mse",
    revision="0" * 40,
    dtype="bfloat16",
    sha256="0" * 64,
    config_sha256="0" * 64,
    factor=8,
    latent_channels=4,
    scaling_factor=0.18215,
    shift_factor=0.0,
)


@pytest.fixture(scope="module")
def imagenet(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """As it would be for 1,281,167 images in `gs://`."""
    settings = plan(photos, tmp_path_factory.mktemp("none") / "out").settings
    source = settings.source.model_copy(
        update={"descriptor": "tar:gs://bucket/ILSVRC2012_img_train.tar"}
    )
    classes = tuple(f"n{number:08d}" for number in range(1000))
    settings = settings.model_copy(
        update={
            "source": source,
            "classes": classes,
            "records": IMAGENET,
            "shards": SHARDS,
            "vae": VAE,
        }
    )
    slices = tuple(Slice(shard, 90_000 * shard, 90_000) for shard in range(SHARDS))
    return Config(Directory("gs://bucket/latents"), settings, slices, 0.01, 15.0)


def build(config: Config, *options: str) -> Any:
    return run_pipeline(
        functools.partial(define_pipeline, config=config),
        [*SUBMISSION, *GPU, "--dry_run=True", *options],
    )


def dependencies(job: Any) -> list[Any]:
    """What workers fetch before they begin."""
    environments = job.proto_pipeline.components.environments.values()
    return [artifact for environment in environments for artifact in environment.dependencies]


def test_job_for_imagenet_is_small_linear_and_runs_our_image(imagenet: Config) -> None:
    job = built_job(build(imagenet))
    assert job.steps == ("Slices", "Spread", "Encode", "Merge", "Finish")
    assert job.image == IMAGE
    assert 10_000 < job.graph_bytes < 500_000  # the service takes about 10 MB


def test_job_asks_for_the_machines_of_the_options(imagenet: Config) -> None:
    from apache_beam.runners.dataflow.internal import apiclient

    job = build(imagenet).job
    environment = apiclient.Environment(
        [], job.options, "8", "gs://bucket/graph", job.proto_pipeline
    ).proto
    (pool,) = environment.worker_pools
    assert pool.machine_type == "g2-standard-8"
    assert pool.autoscaling_settings.max_num_workers == 16
    assert pool.num_threads_per_worker == 2
    assert [container.container_image for container in pool.sdk_harness_container_images] == [IMAGE]
    assert list(environment.service_options) == [GPU[2].partition("=")[2]]
    assert "no_use_multiple_sdk_containers" in environment.experiments
    assert "use_multiple_sdk_containers" not in environment.experiments
    # Nothing is installed when a worker starts, no session is unpickled: what is staged is a list
    # for the log.
    (staged,) = dependencies(job)
    assert b"submission_environment_dependencies" in staged.role_payload


def test_what_the_user_chooses_stands(imagenet: Config) -> None:
    chosen = ["--experiments=use_multiple_sdk_containers", "--number_of_worker_harness_threads=5"]
    options = build(imagenet, *chosen).job.options.get_all_options()
    assert options["number_of_worker_harness_threads"] == 5
    assert "no_use_multiple_sdk_containers" not in options["experiments"]


def test_wheel_is_staged_where_there_is_no_image(tmp_path: Path) -> None:
    wheel = tmp_path / "flowtrain-1-py3-none-any.whl"
    wheel.touch()
    result: Any = run_pipeline(
        lambda root: root | beam.Create([1]),
        ["--runner=DataflowRunner", *PLACE, f"--extra_package={wheel}", "--dry_run=True"],
    )
    staged = [artifact.role_payload for artifact in dependencies(result.job)]
    assert any(wheel.name.encode() in payload for payload in staged)


def test_command_builds_the_job_and_writes_nothing(
    photos: Path, tmp_path: Path, google_store: Store
) -> None:
    source, out = f"{google_store.url}/photos", f"{google_store.url}/latents"
    for path in sorted(photos.rglob("*.png")):
        paths.write(paths.join(source, str(path.relative_to(photos))), path.read_bytes())
    options = [
        "--resolution",
        16,
        "--shards",
        3,
        "--vae",
        "none",
        "--json",
        "--",
        *SUBMISSION,
        "--dry_run=True",
    ]
    result = run(source, out, *options)
    told = json.loads(result.stdout)
    assert told["out"] == out
    assert told["state"] == "job built, not submitted"
    assert told["image"] == IMAGE
    assert not list(paths.entries(out))
    result = run(source, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert f"OUT {tmp_path / 'out'} is on this machine" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "places", "message"),
    [
        (PLACE[:1], {}, "needs --region, --temp_location"),
        ([*PLACE[:2], "--temp_location=/tmp"], {}, "--temp_location=/tmp: Dataflow wants gs://"),
        (PLACE, {}, "needs this package on its workers"),
        (
            [*PLACE, "--extra_package=a.whl", GPU[2]],
            {},
            "GPUs on Dataflow need --sdk_container_image",
        ),
        (SUBMISSION, {"OUT": "/data/out"}, "OUT /data/out is on this machine"),
        (
            SUBMISSION,
            {"OUT": "gs://bucket/out", "SOURCE": "tar:/data/a.tar"},
            "SOURCE tar:/data/a.tar is on this",
        ),
        (SUBMISSION, {"--vae": "/models/vae"}, "give a hub id, or embedded"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    options: list[str], places: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_runner(["--runner=dataflow", *options], places)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_that_workers_reach_are_taken() -> None:
    check_runner(
        SUBMISSION, {"OUT": "gs://bucket/out", "SOURCE": "embedded:digits", "--vae": VAE.id}
    )
    assert not any(
        map(is_local, ["zip:s3://bucket/a.zip", "tar:gs://b/a.tar,gs://b/c.tar", "gs://b/photos"])
    )
    assert is_local("tar:gs://bucket/a.tar,/data/b.tar")


def test_only_dataflow_builds_without_running() -> None:
    assert only_builds([*SUBMISSION, "--dry_run=True"])
    assert not only_builds(SUBMISSION)
    with pytest.raises(UserError, match="prints the plan"):
        only_builds(["--dry_run=True"])


def instructions(file: str) -> list[str]:
    """Lines of a file below `dataflow/` without comments, continued ones joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "dataflow" / file).read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def arguments_of_image() -> dict[str, str]:
    """Defaults of the build arguments."""
    pairs = [
        line.removeprefix("ARG ").split("=")
        for line in instructions("Dockerfile")
        if line.startswith("ARG ")
    ]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_image_has_the_beam_and_the_python_that_the_package_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (beam,) = (
        line for line in map(Requirement, project["dependencies"]) if line.name == "apache-beam"
    )
    given = arguments_of_image()
    assert beam.specifier.contains(given["BEAM_VERSION"])
    assert f"Programming Language :: Python :: {given['PYTHON_VERSION']}" in project["classifiers"]
    assert set(given["EXTRAS"].split(",")) | {"cuda"} <= set(project["optional-dependencies"])


def test_image_copies_what_is_there_and_all_of_the_package() -> None:
    copies = [line.split()[1:] for line in instructions("Dockerfile") if line.startswith("COPY ")]
    sources = {name for words in copies if not words[0].startswith("--") for name in words[:-1]}
    assert all((ROOT / name).exists() for name in sources)
    allowed = {line[1:] for line in instructions("Dockerfile.dockerignore") if line.startswith("!")}
    assert sources == allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        project["project"]["readme"],
    }
    assert needed | {"pyproject.toml", *project["project"]["license-files"]} == sources
