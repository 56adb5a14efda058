import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines.runners.runner import check_runner, parse_options, run_pipeline
from pipelines.runners.submission import Dask, one_line
from schemas.errors import UserError

SEEN: list[int] = []


def record(value: int) -> int:
    SEEN.append(value)
    return value


def define(root: beam.Pipeline) -> None:
    _ = root | beam.Create([1, 2, 3]) | beam.Map(record)


def test_runs_in_this_process_by_default() -> None:
    SEEN.clear()
    run_pipeline(define)
    assert sorted(SEEN) == [1, 2, 3]


def test_a_kill_would_leave_no_folder_of_beam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam makes one for each pipeline and deletes it at the end of a run alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = beam.Pipeline().local_tempdir
    assert Path(made).parent == tmp_path
    Path(made).rmdir()
    left: list[str] = []

    def look(root: beam.Pipeline) -> None:
        left.extend(path.name for path in tmp_path.iterdir())
        define(root)

    run_pipeline(look)
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_provision_info_of_workers() -> None:
    runner, options = parse_options(["--s3_endpoint_url=http://localhost:1"])
    provision = runner._provision_info.provision_info  # pyright: ignore[reportAttributeAccessIssue]
    sent = dict(provision.pipeline_options)
    assert sent["beam:option:s3_endpoint_url:v1"] == "http://localhost:1"
    assert options.get_all_options()["s3_endpoint_url"] == "http://localhost:1"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--no_such_option=1", "does not know the option --no_such_option"),
        ("--direct_num_workers=many", "invalid int value: 'many'"),
        ("--runner=NoSuchRunner", "Unexpected pipeline runner: NoSuchRunner"),
        ("--runner=no.such.Runner", "No module named 'no'"),
    ],
)
def test_what_beam_would_pass_over_is_refused(
    option: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        parse_options([option])
    assert message in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "PortableRunner needs the job service of a runner: --job_endpoint=HOST:PORT"),
        (
            ["--job_endpoint=localhost:1"],
            "no job service answers at --job_endpoint=localhost:1; start it",
        ),
        (["--job_endpoint=nowhere"], "no job service answers at --job_endpoint=nowhere; start it"),
    ],
)
def test_missing_job_service_is_told_at_once(options: list[str], message: str) -> None:
    for attempt in (lambda args: check_runner(args, {}), lambda args: run_pipeline(define, args)):
        with pytest.raises(UserError) as caught:
            attempt(["--runner=portable", *options])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("runner", "module", "extra"),
    [("dask", "dask", "dask"), ("DataflowRunner", "google.cloud", "cloud")],
)
def test_missing_extra_is_named(runner: str, module: str, extra: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"  # an environment without a package, in a process of its own
    missing.write_text(
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from pipelines.runners.runner import parse_options\n"
        "from schemas.errors import UserError\n"
        "try:\n"
        f"    parse_options(['--runner={runner}'])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run([sys.executable, missing], capture_output=True, text=True, check=True)
    (line,) = ended.stdout.splitlines()
    assert line.endswith(f"pip install 'flowtrain[{extra}]'"), line


@pytest.mark.skipif(
    importlib.util.find_spec("dask") is None, reason="dask: pip install 'flowtrain[dask]'"
)
@pytest.mark.parametrize(
    ("elements", "given", "size"),
    [(100, [], 1), (1281, [], 11), (1281, ["--dask_partition_size=5"], 5)],
)
def test_dask_spreads_the_elements(elements: int, given: list[str], size: int) -> None:
    from apache_beam.runners.dask.dask_runner import DaskOptions

    _, options = parse_options(["--runner=dask", *given])
    pipeline = beam.Pipeline(runner="DirectRunner", options=options)
    _ = pipeline | beam.Create(range(elements)) | beam.Reshuffle()
    Dask().settle(pipeline)
    chosen: Any = pipeline.options.view_as(DaskOptions)
    assert chosen.partition_size == size


def test_line_that_says_most() -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
    trace += "ValueError: the reason\n\n"
    assert one_line(RuntimeError(trace)) == "ValueError: the reason"
    remote = "x: <_InactiveRpcError of RPC:\n\tstatus = StatusCode.UNAVAILABLE\n"
    remote += '\tdetails = "nobody there"\n>'
    assert one_line(RuntimeError(remote)) == "nobody there"
    assert one_line(TimeoutError()) == "TimeoutError"


def test_fault_in_a_transform_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_pipeline(lambda root: root | beam.Create([0]) | beam.Map(lambda x: 1 / x))
