"""The page: whole in one file, right numbers, and still a page when parts are missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from evaluation.report import cards, page
from evaluation.report.page import collect, latest_series, write_report
from evaluation.report.render import read_metrics, render
from evaluation.results import Result, read_results
from flowtrain.cli import main
from schemas.errors import UserError
from schemas.recipes import make_recipe
from schemas.run import METRICS_NAME
from tests.evaluation.browser import METRICS, Page
from tests.evaluation.conftest import World, add_tiny_protocol
from tests.evaluation.results import result

VALIDATION = {"step": 15, "val_loss": 0.5, "val_loss_ema": 0.25}


@pytest.fixture(scope="module")
def evaluated_once(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = Path(shutil.copytree(world.workdir, tmp_path_factory.mktemp("evaluated") / "run"))
    lines = [json.dumps(line) for line in (*METRICS, VALIDATION)]
    (workdir / METRICS_NAME).write_text("\n".join([*lines, '{"step": 20, "lo']))
    options = [
        "--steps",
        "2,1",
        "--cfg",
        "1,2",
        "--num-samples",
        "9",
        "--protocol",
        "tiny",
        "--neighbours",
        "3",
    ]
    options += ["--metrics", "pr,dc"]
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_protocol(patch)
        done = CliRunner().invoke(
            main, ["eval", str(workdir), "--reference", str(world.dataset), *options]
        )
    assert done.exit_code == 0, done.output
    return workdir


@pytest.fixture
def evaluated(evaluated_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated_once, tmp_path / "run"))


def test_the_page_needs_nothing_beside_it(evaluated: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    out = tmp_path / "page.html"
    write_report(evaluated, out, warnings.append)
    text = out.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.loads
    assert all(load.startswith("data:image/") for load in parsed.loads)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert "url(" not in text
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Samples",
        "Fewer steps",
        "From noise to data",
        "Distance against steps and guidance",
        "Other metrics",
        "Training",
        "Real and reconstructed",
        "Nearest training images",
        "Where the time went",
        "Recipe",
        "Dataset",
        "Commands",
    ]
    assert "FD(tiny)" in text
    assert "Preprocessing and the reference are not in it" in text
    assert "not reachable from here" in text, "the source of the tiny dataset is nowhere"
    assert warnings == []
    # 3 classes in the samples, 2 guidance weights at 2 numbers of steps, both paths, one strip of
    # reconstructions, 2 settings with neighbours; 3 plots of distances and accuracy, 2 of other
    # metrics, the loss.
    assert parsed.tags.count("img") == 3 + 4 + 2 + 1 + 2 + 3 + 2 + 1
    for name in ("precision", "recall", "density", "coverage"):
        assert f'<th scope="col">{name}</th>' in text


def test_a_run_that_was_never_evaluated_still_has_a_page(workdir: Path) -> None:
    content = collect(workdir, lambda message: pytest.fail(message))
    assert [name for name, _ in content["samples"]] == ["zero", "one", "two"], "drawn for the page"
    text = render(content, page.TEMPLATE)
    assert "flowtrain train" in text
    assert "FD(" not in text
    assert content["paths"].note == "euler, 50 steps, guidance 4"


def test_missing_parts_are_left_out_and_told(evaluated: Path) -> None:
    shutil.rmtree(evaluated / "samples")
    warnings: list[str] = []
    content = collect(evaluated, warnings.append)
    assert content["samples"] is None
    assert content["steps"] == []
    assert any("left out of the report" in warning for warning in warnings)
    assert "Distance against steps" in render(content, page.TEMPLATE)


def test_names_from_outside_are_escaped(evaluated: Path) -> None:
    content = collect(evaluated, lambda message: None) | {"title": "<script>alert(1)</script>"}
    assert "<script>" not in render(content, page.TEMPLATE)


def test_a_metrics_line_being_written_and_one_of_validation_are_left_out(evaluated: Path) -> None:
    assert read_metrics(evaluated) == METRICS


def test_a_damaged_metrics_line_costs_no_other(tmp_path: Path) -> None:
    good = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": 1.0}']
    bad = [b'{"step": 1, "loss": \xff}', b"3", b"[" * 100_000, b'"loss"']
    (tmp_path / METRICS_NAME).write_bytes(b"\n".join([good[0], *bad, good[1]]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_the_page_is_told_where_it_can_go(evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory"):
        write_report(evaluated, tmp_path / "no" / "page.html", lambda message: None)


def test_cards_tell_the_best_settings(world: World) -> None:
    series = [result(20, 1, 2.0, 0.5), result(20, 4, 3.0, 0.9), result(1, 4, 1.5, 0.1)]
    headline = {
        one.label: (one.value, one.detail) for one in cards.headline(world.run, METRICS, series)
    }
    assert headline["FD(tiny), lower is better"] == ("1.50", "1 step, guidance 4")
    assert headline["of samples classified as their class"] == ("90.0%", "20 steps, guidance 4")
    assert headline["training steps"] == ("15", "batches of 4")
    assert cards.most_accurate([result(accuracy=None)]) is None


def test_cards_name_objective_solver_and_weights(world: World) -> None:
    assert "trained by flow matching on 30 records" in cards.summary(world.run)
    recipe = {
        "model": {"size": "debug"},
        "train": {"steps": 3, "batch_size": 4},
        "objective": {"kind": "diffusion"},
    }
    diffusion = world.run.model_copy(update={"recipe": make_recipe(recipe)})
    assert "trained by denoising diffusion on 30 records" in cards.summary(diffusion)
    assert dict(cards.protocol(result()))["sampler"] == "Euler's method"
    plain = result()
    assert plain.sampling is not None
    facts = {"sampler": "ddpm", "weights": "power0.05"}
    card = dict(
        cards.protocol(
            plain.model_copy(update={"sampling": plain.sampling.model_copy(update=facts)})
        )
    )
    assert (card["sampler"], card["weights"]) == (
        "DDPM's ancestral sampling",
        "power0.05 weights, step 3",
    )
    assert card["guidance"] == "uncond + w (cond - uncond) on all channels"


def test_times_add_up(world: World) -> None:
    scored = result(1, 1).model_copy(
        update={"seconds": {"generate": 0.01, "measure": 1.0, "score": 0.5}}
    )
    stages = cards.times(world.run, METRICS, [result(20, 4), scored])
    assert [stage.name for stage in stages] == [
        "train",
        "sample, 20 steps, guidance 4",
        "sample, 1 step, no guidance",
        "decode and measure",
        "distance and other metrics",
    ]
    assert [stage.seconds for stage in stages] == pytest.approx([15 * 4 / 100, 2.0, 0.01, 2.0, 0.5])
    assert [stage.rate for stage in stages] == ["100", "5", "", "10", ""], (
        "samples that were there have no speed"
    )
    assert [stage.nfe for stage in stages] == ["", "40", "1", "", ""]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert (cards.duration(99.94), cards.duration(1234.5)) == ("99.9 s", "1,234 s")


def test_a_series_has_each_setting_once_as_measured_last() -> None:
    first, later = result(20, 1, 3.0), result(20, 1, 2.0)
    images = result().model_copy(update={"sampling": None})
    assert latest_series([first, result(5, 1), later, images]) == [later, result(5, 1)]
    assert latest_series([images]) == []


def test_guidance_has_its_plot_where_there_are_several(evaluated: Path) -> None:
    def plots(results: list[Result]) -> list[str]:
        distance = page._distance(results)
        assert distance is not None
        return [plot.alt for plot in distance["plots"]]

    results = read_results(evaluated)
    assert plots(results)[1] == "FD(tiny) against guidance weight."
    one = [result for result in results if result.sampling is not None and result.sampling.cfg == 1]
    assert plots(one) == ["FD(tiny) against sampling steps.", "Accuracy against sampling steps."]
