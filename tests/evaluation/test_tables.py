"""Tables: a row a step count, two columns a guidance weight, nothing mixed in."""

from evaluation.tables import by_setting, describe, figure, markdown_table, same_series, setting_text, text_table
from tests.evaluation.test_results import result

RESULTS = [result(20, 1, 3.25), result(5, 1, 9.5), result(20, 4, 12.125, 0.987), result(5, 1, 9.75)]


def test_text_has_a_row_a_step_count_and_leaves_gaps() -> None:
    lines = text_table(RESULTS).splitlines()
    assert lines[0] == "FD(tiny), 10 samples against 100 images; EMA weights of step 3, euler, seed 0"
    assert lines[1].split("  ")[0].strip() == "steps"
    assert lines[3].split() == ["20", "3.25", "50.0%", "12.12", "98.7%"]
    assert lines[4].split() == ["5", "9.75", "50.0%", "-", "-"], "the newest of two equal settings"
    assert len({len(line) for line in lines[1:]}) == 1, "aligned"


def test_further_averages_and_solvers_are_named() -> None:
    def described(**facts: str) -> str:
        plain = result()
        assert plain.sampling is not None
        return describe(plain.model_copy(update={"sampling": plain.sampling.model_copy(update=facts)}))

    assert described(weights="params").endswith("; raw weights of step 3, euler, seed 0")
    assert described(weights="ema0.999", sampler="ddpm").endswith("; ema0.999 weights of step 3, ddpm, seed 0")


def test_markdown_is_a_table_with_its_protocol() -> None:
    text = markdown_table(RESULTS)
    assert "| 20 | 3.25 | 50.0% | 12.12 | 98.7% |" in text
    assert "| steps | FD(tiny), cfg 1 | accuracy, cfg 1 | FD(tiny), cfg 4 | accuracy, cfg 4 |" in text
    assert "FID" not in text
    assert "Extractor tiny (000000000000)" in text


def test_without_accuracy_there_is_no_column_for_it() -> None:
    assert "accuracy" not in text_table([result(accuracy=None)])


def test_compared_images_get_a_line() -> None:
    compared = result().model_copy(update={"sampling": None})
    assert text_table([compared]) == "FD(tiny), 10 images against 100 images: 1.5000, 50.0% classified as labelled"
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
    assert setting_text(sampling.model_copy(update={"steps": 1, "cfg": 1.0})) == "1 step, no guidance"
