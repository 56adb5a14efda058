"""What a merge becomes: what fits together, which directory is this merge, and what it says."""

import json
import shlex
from pathlib import Path

import pytest

from pipelines.curate.merge_plan import MergePlan, make_plan, merge_build
from schemas.errors import UserError
from schemas.manifest import MERGE_NAME, RESULTS_NAME, read_manifest
from schemas.sealed import unseal
from schemas.storage.directory import open_directory
from tests.pipelines.datasets import VAE, make
from tests.refusals import refused


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Two datasets that number their classes otherwise."""
    make(tmp_path / "a", [{"a0": "ant"}, {"a1": "bee"}], flips=True, rejects=["z"])
    make(tmp_path / "b", [{"b0": "cat"}], classes=("bee", "ant", "cat"), flips=True)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def refusal(parts: list[str], split: str | None = None) -> str:
    return refused(lambda: make_plan(parts, split))


def test_what_datasets_that_fit_become(parts: list[str], tmp_path: Path) -> None:
    plan = make_plan(parts, None)
    assert plan.classes == ("ant", "bee", "cat")
    assert plan.splits == ("train", "train_flip")
    assert plan.shards == 3
    assert [part.digest for part in plan.sources()] == [
        read_manifest(tmp_path / name).digest() for name in "ab"
    ]
    assert [part.counts.rejected for part in plan.sources()] == [1, 0]
    assert shlex.split(plan.command) == ["flowtrain", "data", "merge", *parts, "OUT"]
    named = make_plan(parts, "all")
    assert named.splits == ("all", "all_flip")
    assert shlex.split(named.command)[-3:] == ["OUT", "--split", "all"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"resolution": 16, "vae": VAE.model_copy(update={"factor": 8})}, "resolution is 8 and 16"),
        ({"crop": "none"}, 'crop is "adm" and "none"'),
        ({"flips": False}, "flips is true and false"),
        ({"vae": VAE.model_copy(update={"sha256": "f" * 64})}, "the VAE's sha256 is"),
        ({"vae": VAE.model_copy(update={"config_sha256": "f" * 64})}, "the VAE's config_sha256 is"),
        (
            {"vae": VAE.model_copy(update={"dtype": "bfloat16"})},
            'dtype is "float32" and "bfloat16"',
        ),
        (
            {"vae": VAE.model_copy(update={"scaling_factor": 0.75})},
            "scaling_factor is 0.5 and 0.75",
        ),
        ({"split": "test"}, "the split is train in"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_difference(
    parts: list[str], tmp_path: Path, changes: dict[str, object], difference: str
) -> None:
    make(tmp_path / "c", [{"c0": "ant"}], **{"flips": True, **changes})  # type: ignore[arg-type]
    told = refusal([parts[0], str(tmp_path / "c")])
    assert difference in told
    assert parts[0] in told
    assert str(tmp_path / "c") in told


def test_what_is_no_merge(parts: list[str], tmp_path: Path) -> None:
    assert "give at least two datasets" in refusal(parts[:1])
    assert "letters, digits and underscores only" in refusal(parts, "a-b")
    assert "no such dataset" in refusal([parts[0], str(tmp_path / "nowhere")])


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_results_that_are_not_whole_say_how_to_mend_them(
    parts: list[str], tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "b" / RESULTS_NAME
    data = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(data[:-9])
    told = refusal(parts)
    expected = {
        "missing": f"{file}: cannot be read (No such file or directory)",
        "cut": f"{file} is missing or damaged; `flowtrain data verify {parts[1]}` says how to mend",
    }
    assert told.startswith(expected[damage])


def folders(plan: MergePlan) -> tuple[str, str]:
    return plan.work, plan.text()


def test_all_that_decides_the_bytes_has_a_work_folder_of_its_own(
    parts: list[str], tmp_path: Path
) -> None:
    plans = [make_plan(parts, None), make_plan(parts[::-1], None), make_plan(parts, "train")]
    manifest = make(tmp_path / "b", [{"b0": "cat"}], classes=("cat", "bee", "ant"), flips=True)
    plans.append(make_plan(parts, None))
    assert plans[-1].sources()[1].digest == manifest.digest()
    assert len({folders(plan) for plan in plans}) == len(plans)
    assert folders(make_plan(parts, None)) == folders(plans[-1]), "the same again"
    told = json.loads(unseal(plans[0].text().encode()))
    assert told["command"] == plans[0].command
    assert told["parts"] == [part.digest for part in plans[0].sources()]


def test_a_directory_that_was_begun_is_known_or_refused(parts: list[str], tmp_path: Path) -> None:
    out = open_directory(str(tmp_path / "out"))
    plan, other = make_plan(parts, None), make_plan(parts[::-1], None)
    merge_build(out, plan).take()
    merge_build(out, plan).check_ownership()
    with pytest.raises(UserError) as caught:
        merge_build(out, other).check_ownership()
    assert f"holds another merge ({plan.command})" in str(caught.value)
    (tmp_path / "out" / MERGE_NAME).write_text("{")
    with pytest.raises(UserError, match=f"holds a damaged {MERGE_NAME}; delete it if"):
        merge_build(out, plan).check_ownership()
    (tmp_path / "out" / MERGE_NAME).unlink()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"is not empty \(thesis\.txt\)"):
        merge_build(out, plan).check_ownership()
