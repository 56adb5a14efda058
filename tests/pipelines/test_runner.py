import apache_beam as beam
import pytest

from pipelines.runner import parse_options, run_pipeline
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
def test_what_beam_would_pass_over_is_refused(option: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_options([option])
    assert message in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_fault_in_a_transform_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_pipeline(lambda root: root | beam.Create([0]) | beam.Map(lambda x: 1 / x))
