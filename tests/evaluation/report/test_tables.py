"""Tables: a row a step count, two columns a guidance weight, nothing mixed in."""

from evaluation.report.tables import (
    Table,
    by_series,
    by_setting,
    describe,
    figure,
    markdown,
    metrics_table,
    model_table,
    same_series,
    setting_text,
    steps_table,
)
from tests.evaluation.results import result

RESULTS = [result(20, 1, 3.25), result(5, 1, 9.5), result(20, 4, 12.125, 0.987), result(5, 1, 9.75)]


def test_steps_have_a_row_each_and_gaps_stay() -> None:
    lines = steps_table(RESULTS).splitlines()
    assert lines[0] == (
        "FD(tiny), 10 samples against 100 images; EMA weights of step 3, euler, seed 0. Lower is "
        "better."
    )
    assert lines[2].split("|")[1].strip() == "steps"
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        "20",
        "3.25",
        "50.0%",
        "12.12",
        "98.7%",
    ]
    newest = [cell.strip() for cell in lines[5].split("|")[1:-1]]
    assert newest == ["5", "9.75", "50.0%", "-", "-"], "the newest of two equal settings"
    assert len({len(line) for line in lines[2:]}) == 1, "aligned"


def test_further_averages_and_solvers_are_named() -> None:
    def described(**facts: str) -> str:
        plain = result()
        assert plain.sampling is not None
        return describe(
            plain.model_copy(update={"sampling": plain.sampling.model_copy(update=facts)})
        )

    assert described(weights="params").endswith("; raw weights of step 3, euler, seed 0")
    assert described(weights="ema0.999", sampler="ddpm").endswith(
        "; ema0.999 weights of step 3, ddpm, seed 0"
    )


def test_markdown_is_a_table_with_its_protocol() -> None:
    text = " ".join(markdown(RESULTS).split())
    assert "| 20 | 3.25 | 50.0% | 12.12 | 98.7% |" in text
    assert (
        "| steps | FD(tiny), cfg 1 | accuracy, cfg 1 | FD(tiny), cfg 4 | accuracy, cfg 4 |" in text
    )
    assert "FID" not in text
    assert "Extractor tiny (000000000000)" in text


def test_models_have_a_row_each_at_their_own_number_of_steps() -> None:
    flow = [result(20, 1, 3.25), result(20, 4, 1.5), result(100, 1, 2.0)]
    table = model_table(
        {"flow": flow, "diffusion": [result(50, 4, 7.0)]}, {"flow": 20, "diffusion": 20}
    )
    assert table.header == ["model", "steps", "FD(tiny), no guidance", "FD(tiny), cfg 4"]
    assert table.rows == [["flow", "20", "3.25", "1.50"], ["diffusion", "50", "-", "7.00"]]


def test_metrics_have_a_column_each() -> None:
    some = result(20, 1, 3.25).model_copy(update={"metrics": {"precision": 0.5, "recall": 0.25}})
    table = metrics_table([some, result(5, 1, 9.5)])
    assert table is not None
    assert table.header == ["setting", "FD(tiny)", "precision", "recall"]
    assert table.rows == [
        ["20 steps, no guidance", "3.25", "0.500", "0.250"],
        ["5 steps, no guidance", "9.50", "-", "-"],
    ]
    assert metrics_table(RESULTS) is None
    assert "recall" in markdown([some])


def test_series_are_kept_apart() -> None:
    sampling = RESULTS[0].sampling
    assert sampling is not None
    other = RESULTS[0].model_copy(update={"sampling": sampling.model_copy(update={"seed": 1})})
    assert by_series([RESULTS[0], other, RESULTS[1]]) == [[RESULTS[0], RESULTS[1]], [other]]
    assert markdown([RESULTS[0], other]).count("Lower is better") == 2


def test_without_accuracy_there_is_no_column_for_it() -> None:
    assert "accuracy" not in markdown([result(accuracy=None)])


def test_compared_images_get_a_line() -> None:
    compared = result().model_copy(update={"sampling": None})
    assert (
        markdown([compared])
        == "FD(tiny), 10 images against 100 images: 1.5000, 50.0% classified as labelled"
    )
    assert describe(compared).startswith("FD(tiny), 10 images")


def test_a_series_shares_everything_but_steps_and_guidance() -> None:
    other = result(20, 1)
    assert other.sampling is not None
    later = other.model_copy(update={"sampling": other.sampling.model_copy(update={"step": 99})})
    assert same_series([*RESULTS, later], RESULTS[0]) == RESULTS
    assert same_series([*RESULTS, later], later) == [later]
    steps, guidances, _ = by_setting(RESULTS)
    assert (steps, guidances) == ([20, 5], [1.0, 4.0])


def test_small_distances_keep_their_digits() -> None:
    assert [figure(value) for value in (0.0421, 1.0, 12.345)] == ["0.042", "1.00", "12.35"]
    sampling = RESULTS[2].sampling
    assert sampling is not None
    assert setting_text(sampling) == "20 steps, guidance 4"
    assert (
        setting_text(sampling.model_copy(update={"steps": 1, "cfg": 1.0})) == "1 step, no guidance"
    )


def test_markdown_can_be_read_as_it_is() -> None:
    table = Table(
        ["model", "steps", "FD, cfg 4"],
        [["flow", "20", "-"], ["a diffusion", "500", "1.25"]],
        left=1,
    )
    assert table.markdown().splitlines() == [
        "| model       | steps | FD, cfg 4 |",
        "| ----------- | ----: | --------: |",
        "| flow        |    20 |         - |",
        "| a diffusion |   500 |      1.25 |",
    ]
