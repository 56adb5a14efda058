"""Runs side by side: what may be compared, what differs, pictures of the same noise, and the tables
in Markdown.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evaluation.report import side_by_side
from evaluation.report.render import render
from evaluation.report.side_by_side import (
    Side,
    best_setting,
    collect,
    comparable,
    differences,
    facts,
    markdown,
    names,
    noise_text,
    read_sides,
    shared_settings,
)
from evaluation.results import Result
from flowtrain.cli import main
from schemas.errors import UserError
from schemas.recipes import make_recipe
from schemas.run import METRICS_NAME, Run, read_run, write_run
from tests.evaluation import tiny
from tests.evaluation.browser import METRICS, Page
from tests.evaluation.conftest import World, add_tiny_protocol
from tests.evaluation.results import result


def as_diffusion(run: Run) -> Run:
    recipe = {"model": {"size": "debug"}, "objective": {"kind": "diffusion"}}
    return run.model_copy(
        update={"recipe": make_recipe({**recipe, "train": {"steps": tiny.STEP, "batch_size": 4}})}
    )


def measured_otherwise(one: Result) -> Result:
    return one.model_copy(
        update={"reference": one.reference.model_copy(update={"digest": "e" * 64})}
    )


@pytest.fixture(scope="module")
def evaluated_once(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same weights: a flow, and what calls itself a diffusion; measured at settings
    that overlap.
    """
    root = tmp_path_factory.mktemp("two")
    for name, steps in (("flow", "4,2,1"), ("diffusion", "2,1")):
        workdir = Path(shutil.copytree(world.workdir, root / name))
        (workdir / METRICS_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in METRICS))
        if name == "diffusion":
            write_run(workdir, as_diffusion(world.run))
        options = [
            "--steps",
            steps,
            "--cfg",
            "1,2",
            "--num-samples",
            "9",
            "--protocol",
            "tiny",
            "--metrics",
            "pr",
        ]
        with pytest.MonkeyPatch.context() as patch:
            add_tiny_protocol(patch)
            done = CliRunner().invoke(
                main, ["eval", str(workdir), "--reference", str(world.dataset), *options]
            )
        assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def two(evaluated_once: Path, tmp_path: Path) -> list[Path]:
    root = Path(shutil.copytree(evaluated_once, tmp_path / "runs"))
    return [root / "flow", root / "diffusion"]


def fail_told(message: str) -> None:
    pytest.fail(message)


def side(world: World, name: str, series: list[Result], run: Run | None = None) -> Side:
    return Side(name, world.workdir, run or world.run, [], series)


def test_the_command_writes_a_page_and_prints_its_tables(two: list[Path]) -> None:
    done = CliRunner().invoke(main, ["report", *map(str, two)])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    out = two[0] / "report-comparison.html"
    lines = done.stdout.splitlines()
    assert lines[0].split("|")[1].strip() == "model"
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [
        "flow (flow, DiT-debug/2)",
        "diffusion (diffusion, DiT-debug/2)",
    ]
    assert [line.split("|")[2].strip() for line in lines[2:4]] == ["4", "2"], (
        "50 steps were not measured"
    )
    assert "diffusion (diffusion, DiT-debug/2): FD(tiny), 9 samples" in done.stdout
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][4:] == [
        *("steps", "----:", "4", "2", "1"),
        *("steps", "----:", "2", "1"),
    ]
    assert lines[-1].startswith(str(out))
    page = Page(out.read_text())
    assert page.open == []
    assert all(load.startswith("data:image/") for load in page.loads)
    assert "script" not in page.tags
    # A plot of distances, one of precision and recall, the loss; 3 classes by 2 runs; 2 guidance
    # weights by 2 runs by the 2 step counts that both have.
    assert page.tags.count("img") == 3 + 3 * 2 + 2 * 2 * 2


def test_a_dry_run_writes_nothing(two: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(main, ["report", *map(str, two), "--dry-run"])
    assert done.exit_code == 0
    assert "flow (flow, DiT-debug/2), diffusion (diffusion, DiT-debug/2)" in done.stdout
    assert "6, 4" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_noise_is_side_by_side(two: list[Path]) -> None:
    sides = read_sides(two, fail_told)
    content = collect(sides, fail_told)
    assert noise_text(sides) == "Sample i of every run begins with the same noise."
    assert [group.title for group in content["samples"]] == ["zero", "one", "two"]
    assert [name for name, _ in content["samples"][0].rows] == ["flow", "diffusion"]
    assert [title for title, _ in content["steps"]] == ["Without guidance", "Guidance 2"]
    ((first, blocks), _) = content["steps"][0][1]
    assert first == "flow (flow, DiT-debug/2)"
    assert [block.title for block in blocks] == ["2 steps", "1 step"]
    assert not content["same_target"]
    assert "cannot be compared" in render(content, side_by_side.TEMPLATE)


def test_runs_without_results_are_compared_by_fresh_samples(two: list[Path]) -> None:
    for workdir in two:
        (workdir / "results.jsonl").unlink()
    sides = read_sides(two, fail_told)
    content = collect(sides, fail_told)
    assert (content["distance"], content["models"], content["steps"]) == (None, None, [])
    assert content["setting"] == "each with the sampler of its recipe"
    assert len(content["samples"]) == 3
    assert markdown(sides) == ""
    text = render(content, side_by_side.TEMPLATE)
    assert "FD(" not in text
    assert "What differs" in text


def test_a_run_that_was_not_measured_is_told(two: list[Path]) -> None:
    (two[1] / "results.jsonl").unlink()
    told: list[str] = []
    sides = read_sides(two, told.append)
    assert told == [
        f"{two[1]}: has no results of the protocol and reference of the others; no distances of it",
    ]
    assert "diffusion" not in markdown(sides)
    with pytest.raises(UserError, match="given twice"):
        read_sides([two[0], two[0] / ".." / "flow"], fail_told)


def test_samples_that_are_gone_are_left_out_and_told(two: list[Path]) -> None:
    shutil.rmtree(two[1] / "samples")
    told: list[str] = []
    content = collect(read_sides(two, fail_told), told.append)
    assert (content["samples"], content["steps"]) == ([], [])
    assert len(told) == 2
    assert content["distance"] is not None


def test_only_what_was_measured_in_one_way_is_compared() -> None:
    here, there = result(20, 1), result(5, 1)
    other = measured_otherwise(result(20, 4))
    assert comparable([[here, other], [there]]) == [[here], [there]], (
        "what both have, though not the newest"
    )
    assert comparable([[here, other], [there, other]]) == [[other], [other]], (
        "of two that both have, the newest"
    )
    assert comparable([[here], [other]]) == [[here], []]
    assert comparable([[], []]) == [[], []]
    scored = here.protocol.model_copy(update={"splits": "consecutive", "last_layer": "a" * 64})
    with_score = here.model_copy(update={"protocol": scored})
    assert comparable([[with_score], [there]]) == [[with_score], [there]], (
        "the last layer is the Inception Score's"
    )


def test_names_are_short_where_they_can_be(tmp_path: Path) -> None:
    assert names([tmp_path / "a", tmp_path / "b" / ".." / "c"]) == ["a", "c"]
    twins = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert names(twins) == [str(twins[0]), str(twins[1]), "z"]


def test_differences_are_those_of_recipe_and_dataset(world: World) -> None:
    first = world.run
    assert differences([first, first]) == []
    moved = first.model_copy(
        update={"dataset": first.dataset.model_copy(update={"path": "/elsewhere"})}
    )
    assert differences([first, moved]) == []
    second = as_diffusion(first).model_copy(
        update={
            "dataset": first.dataset.model_copy(update={"records": 7, "digest": "f" * 64}),
            "vae": None,
        }
    )
    found = dict(differences([first, second]))
    assert found["dataset.records"] == "30 → 7"
    assert found["dataset.digest"] == f"{first.dataset.digest[:12]}… → ffffffffffff…"
    assert found["dataset.VAE"].endswith(" → none")
    assert found["objective.kind"] == "flow → diffusion"
    assert found["model.time_integer"] == "false → true"
    assert "train.steps" not in found
    assert dict(differences([first, second, first]))["objective.kind"] == "flow → diffusion → flow"


def test_the_shown_setting_is_near_for_all(world: World) -> None:
    sides = [
        side(world, "a", [result(20, 1, 4.0), result(5, 1, 1.0), result(1, 1, 0.1)]),
        side(world, "b", [result(20, 1, 2.0), result(5, 1, 6.0)]),
    ]
    assert shared_settings(sides) == [(20, 1.0), (5, 1.0)]
    assert best_setting(sides) == (5, 1.0), (
        "6 < 8, though 4 + 2 < 1 + 6: a run of large distances does not decide alone"
    )
    assert best_setting([sides[0], side(world, "c", [])]) is None


def test_noise_differs_with_seed_or_shape(world: World) -> None:
    plain = result()
    assert plain.sampling is not None
    seeded = plain.model_copy(update={"sampling": plain.sampling.model_copy(update={"seed": 1})})
    larger = world.run.model_copy(update={"latent_shape": (8, 8, 4)})
    one = side(world, "a", [plain])
    assert noise_text([one, side(world, "b", [plain])]).startswith("Sample i of every run")
    assert "different noise" in noise_text([one, side(world, "b", [seeded])])
    assert "different noise" in noise_text([one, side(world, "b", [plain], larger)])


def test_runs_of_other_classes_have_a_heading_each(two: list[Path]) -> None:
    run = read_run(two[1])
    write_run(two[1], run.model_copy(update={"classes": ("x", "y", "z")}))
    groups = side_by_side.samples(read_sides(two, fail_told))
    assert [group.title for group in groups] == [
        "flow (flow, DiT-debug/2)",
        "diffusion (diffusion, DiT-debug/2)",
    ]
    assert [name for name, _ in groups[1].rows] == ["x", "y", "z"]


def test_facts_have_a_column_a_run(world: World) -> None:
    table = facts(
        [side(world, "a", []), Side("b", world.workdir, as_diffusion(world.run), METRICS, [])]
    )
    assert table.header == ["", "a", "b"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["objective"] == ["flow, predicts velocity", "diffusion, predicts epsilon"]
    assert rows["training"] == ["0 of 3 steps of 4", "15 of 3 steps of 4"]
    assert rows["last loss"] == ["-", f"{np.round(1 / 15, 4)}"]
