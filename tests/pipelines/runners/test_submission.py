"""What runners elsewhere need, and what their failures mean."""

import importlib.util
import socket
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.runners.submission import DASK_PARTITIONS, Dask, Elsewhere, Portable, worker_died
from tests.refusals import refused

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("dask") is None, reason="dask: pip install 'flowtrain[dask]'"
)


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that answers."""
    with socket.create_server(("localhost", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def silent() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def refusal(runner: Elsewhere, *options: str) -> str:
    return refused(lambda: runner.check(PipelineOptions([*options]), {}))


def test_a_job_service_is_asked_for_and_must_answer(listening: int, silent: int) -> None:
    Portable().check(PipelineOptions(["--job_endpoint=embed"]), {})
    Portable().check(PipelineOptions([f"--job_endpoint=localhost:{listening}"]), {})
    assert "--job_endpoint=HOST:PORT" in refusal(Portable())
    told = refusal(Portable(), f"--job_endpoint=localhost:{silent}")
    assert f"no job service answers at --job_endpoint=localhost:{silent}; start it" in told
    assert "no job service answers" in refusal(Portable(), "--job_endpoint=localhost:x")


@needs_dask
def test_a_scheduler_must_answer(listening: int, silent: int) -> None:
    Dask().check(PipelineOptions([]), {})
    Dask().check(PipelineOptions([f"--dask_client_address=tcp://localhost:{listening}"]), {})
    told = refusal(Dask(), f"--dask_client_address=tcp://localhost:{silent}")
    assert "no Dask scheduler answers" in told


@needs_dask
@pytest.mark.parametrize(
    ("elements", "size"),
    [(0, 1), (1, 1), (DASK_PARTITIONS, 1), (DASK_PARTITIONS + 1, 2), (10 * DASK_PARTITIONS, 10)],
)
def test_dask_gets_as_many_partitions_as_it_can_group(elements: int, size: int) -> None:
    from apache_beam.runners.dask.dask_runner import DaskOptions

    pipeline = beam.Pipeline(options=PipelineOptions([]))
    _ = pipeline | beam.Create(range(elements))
    Dask().settle(pipeline)
    assert pipeline.options.view_as(DaskOptions).partition_size == size


@needs_dask
def test_partitions_that_the_user_chose_stay() -> None:
    from apache_beam.runners.dask.dask_runner import DaskOptions

    pipeline = beam.Pipeline(options=PipelineOptions(["--dask_npartitions=3"]))
    _ = pipeline | beam.Create(range(1000))
    Dask().settle(pipeline)
    chosen = pipeline.options.view_as(DaskOptions)
    assert (chosen.npartitions, chosen.partition_size) == (3, None)


@pytest.mark.parametrize(
    ("options", "text", "told"),
    [
        (
            ["--environment_type=EXTERNAL", "--environment_config=localhost:7"],
            "status = StatusCode.UNAVAILABLE",
            "no worker pool answers at localhost:7; start it there",
        ),
        ([], "RuntimeError: docker: not found", "the container of the workers did not start"),
    ],
)
def test_failures_of_a_portable_runner(options: list[str], text: str, told: str) -> None:
    explained = Portable().explain(RuntimeError(text), PipelineOptions(options))
    assert explained is not None
    assert told in explained
    assert Portable().explain(RuntimeError("another"), PipelineOptions(options)) is None


def test_a_worker_that_died_is_known_by_its_error() -> None:
    killed = type("KilledWorker", (Exception,), {})
    assert worker_died(killed("x"))
    assert worker_died(RuntimeError("Channel closed prematurely."))
    assert not worker_died(RuntimeError("KilledWorker"))
