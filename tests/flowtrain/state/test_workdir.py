"""Whose work directory is it?"""

from pathlib import Path

import pytest

from flowtrain.state.workdir import check, claimed
from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.recipes import make_recipe
from schemas.run import CHECKPOINTS_DIR, DatasetRef, Run, read_run


def _run(*overrides: str, digest: str = "d" * 64, path: str = "/data") -> Run:
    dataset = DatasetRef(
        path=path, digest=digest, split="train", records=9, flips=False, source="s", resolution=16
    )
    return Run(
        recipe=make_recipe(
            {"model": {"size": "debug"}, "train": {"steps": 10, "batch_size": 2}}, overrides
        ),
        dataset=dataset,
        latent_shape=(4, 4, 2),
        classes=("a",),
        normalization=Normalization(offset=(0.0,) * 2, scale=(1.0,) * 2),
        vae=None,
        parameters=4,
        versions={},
    )


def _begin(workdir: Path, run: Run, *, learned: bool = True) -> None:
    """Hold the directory for a moment, and leave a checkpoint."""
    with claimed(workdir, run):
        (workdir / CHECKPOINTS_DIR / "5" if learned else workdir).mkdir(parents=True, exist_ok=True)


def test_the_same_run_may_go_on_and_be_made_longer(tmp_path: Path):
    workdir = tmp_path / "new" / "run"
    _begin(workdir, _run())
    _begin(workdir, _run())
    longer = _run("train.steps=20", "train.log_every=7", "sampler.cfg=1.5", path="/moved")
    _begin(workdir, longer)
    assert read_run(workdir) == longer


def test_the_versions_are_those_that_began_the_run(tmp_path: Path):
    _begin(tmp_path, _run().model_copy(update={"versions": {"jax": "1"}}))
    _begin(tmp_path, _run("train.log_every=7").model_copy(update={"versions": {"jax": "2"}}))
    assert read_run(tmp_path).versions == {"jax": "1"}
    assert read_run(tmp_path).recipe.train.log_every == 7


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.0001 and is now 0.5"),
        ("model.depth=3", "model.depth was 2 and is now 3"),
        ("train.steps=5", "train.steps was 10 and is now 5"),
        ("train.seed=1", "train.seed was 0 and is now 1"),
    ],
)
def test_another_recipe_is_refused_and_the_difference_named(
    tmp_path: Path, override: str, difference: str
):
    _begin(tmp_path, _run())
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match=difference):
        _begin(tmp_path, _run(override))
    assert (tmp_path / "run.json").read_bytes() == before


def test_before_the_first_checkpoint_another_recipe_begins_anew(tmp_path: Path):
    first = _run().model_copy(update={"versions": {"jax": "1"}})
    other = _run("model.depth=3", "train.steps=5").model_copy(update={"versions": {"jax": "2"}})
    _begin(tmp_path, first, learned=False)
    # of a save that was killed
    (tmp_path / CHECKPOINTS_DIR / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="another dataset"):
        _begin(tmp_path, _run(digest="e" * 64), learned=False)
    check(tmp_path, other)
    assert read_run(tmp_path) == first
    _begin(tmp_path, other)
    assert read_run(tmp_path) == other
    with pytest.raises(UserError, match=r"model.depth was 3 and is now 2"):
        check(tmp_path, first)


def test_a_cosine_run_cannot_be_made_longer(tmp_path: Path):
    _begin(tmp_path, _run("optimizer.schedule=cosine"))
    with pytest.raises(UserError, match=r"train.steps was 10 and is now 20"):
        _begin(tmp_path, _run("optimizer.schedule=cosine", "train.steps=20"))


def test_another_dataset_is_refused(tmp_path: Path):
    _begin(tmp_path, _run())
    with pytest.raises(
        UserError, match=r"another dataset .*digest dddddddd, now /data, 9 records, digest eeeeeeee"
    ):
        _begin(tmp_path, _run(digest="e" * 64))


def test_foreign_content_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(thesis.tex\)"):
        _begin(tmp_path, _run())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        check(tmp_path / "thesis.tex", _run())
    with pytest.raises(
        UserError, match=r"thesis.tex/a/run: cannot be made \(.*thesis.tex: Not a directory\)"
    ):
        check(tmp_path / "thesis.tex" / "a" / "run", _run())


def test_what_a_kill_leaves_behind_is_no_foreign_content(tmp_path: Path):
    (tmp_path / ".lock").touch()
    left = tmp_path / ".run.json.123.tmp"
    left.write_text("{")
    _begin(tmp_path, _run())
    assert not left.exists()


def test_two_processes_cannot_train_in_one_directory(tmp_path: Path):
    with (
        claimed(tmp_path, _run()),
        pytest.raises(UserError, match="another process is training here"),
    ):
        _begin(tmp_path, _run())


def test_a_check_writes_nothing(tmp_path: Path):
    check(tmp_path / "new", _run())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_file_is_refused(tmp_path: Path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        check(tmp_path, _run())
