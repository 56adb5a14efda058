"""`flowtrain train` as it is typed: its plan, and one line for each mistake."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowtrain.cli import main
from flowtrain.recipes import find_recipe
from flowtrain.train_request import TrainRequest, check_request
from schemas.recipes import load_recipe
from schemas.run import read_run
from tests.flowtrain.datasets import write_dataset


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=2)
    return path


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["train", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_dry_run_tells_the_plan_and_writes_nothing(latents: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    options = ["--workdir", workdir, "--recipe", "debug", "--set", "train.steps=50", "--dry-run"]
    code, out, _ = _run(latents, *options, "--json")
    assert code == 0
    content = json.loads(out)
    assert content["recipe"]["train"]["steps"] == 50
    plan = content["plan"]
    assert (plan["records"], plan["steps"], plan["batch_size"], plan["epochs"]) == (20, 50, 8, 20.0)
    assert plan["checkpoint_bytes"] == 16 * plan["parameters"]
    tokens, width = 4, 32
    macs = 2 * (12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2)
    macs += 2 * tokens * 16 * width + 256 * width + 3 * width**2
    assert plan["forward_gflop_per_image"] == round(2e-9 * macs, 4)
    assert not workdir.exists()
    code, out, _ = _run(latents, *options)
    assert code == 0
    assert "parameters = " in out


def test_every_mistake_is_one_line_and_status_2(latents: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "something").touch()
    cases = [
        (tmp_path / "nowhere", "debug", [], "no such dataset directory"),
        (empty, "debug", [], "not a finished dataset"),
        (latents, "degub", [], "did you mean 'debug'"),
        (latents, "debug", ["train.stepz=3"], "unknown key train.stepz; did you mean 'steps'"),
        (latents, "debug", ["model.patch=3"], "not divisible by VAE factor 4 x patch 3"),
        (latents, "debug", ["train.batch_size=64"], "larger than the dataset"),
    ]
    for data, recipe, overrides, message in cases:
        sets = [part for value in overrides for part in ("--set", value)]
        code, out, err = _run(data, "--workdir", tmp_path / "run", "--recipe", recipe, *sets)
        assert (code, out) == (2, ""), err
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
    code, _, err = _run(latents, "--workdir", empty, "--recipe", "debug", "--dry-run")
    assert (code, "not empty (something)" in err) == (2, True)


def test_options_that_need_each_other(latents: Path, tmp_path: Path):
    for options, message in (
        (["--processes", "2", "--process", "0"], "need --coordinator HOST:PORT, or --distributed"),
        (["--process", "0"], "need --coordinator HOST:PORT, or --distributed"),
        (["--coordinator", "127.0.0.1:1"], "--coordinator needs --processes N and --process I"),
        (
            ["--coordinator", "h:1", "--processes", "2", "--process", "2"],
            "of 2 processes the last is number 1",
        ),
        (
            ["--reference", "statistics.npz"],
            "--reference is for the distances of previews, and there are none",
        ),
        (["--set", "train.keep_best=1"], "train.keep_best needs a validation loss"),
        (
            ["--cache-dir", "x"],
            "--cache-dir says where to stage, and nothing is staged; add --cache disk, or leave it",
        ),
        (
            ["--cache-dir", "x", "--cache", "ram"],
            "--cache-dir says where to stage, and nothing is staged",
        ),
        (
            ["--fsdp", "3"],
            "--fsdp 3: the number of devices, 8, is not divisible by it; use one of 1, 2, 4, 8",
        ),
        (["--set", "train.batch_size=9"], "train.batch_size 9 is not divisible by 8 devices"),
    ):
        code, _, err = _run(
            latents, "--workdir", tmp_path / "run", "--recipe", "debug", *options, "--dry-run"
        )
        assert (code, message in err) == (2, True), err
        assert not (tmp_path / "run").exists()
    distances = ["--set", "preview.distance_samples=9"]
    for options in (
        ["--set", "train.keep_best=1", "--validation", latents],
        ["--set", "train.keep_best=1", "--set", "train.holdout=4"],
        ["--cache-dir", "x", "--cache", "disk"],
        ["--reference", tmp_path, "--set", "preview.every=1", *distances],
    ):
        code, _, err = _run(
            latents, "--workdir", tmp_path / "run", "--recipe", "debug", *options, "--dry-run"
        )
        assert code == 0, err
    request = TrainRequest(
        data=str(latents),
        workdir=tmp_path / "run",
        recipe="debug",
        validation="s3://bucket/data",
        cache_dir=tmp_path,
    )
    check_request(request, load_recipe(find_recipe("debug")))


def test_a_dry_run_looks_at_all_that_is_named(latents: Path, tmp_path: Path):
    previews = ["--set", "preview.every=1", "--set", "preview.distance_samples=9"]
    for options, message in (
        (["--validation", tmp_path / "none"], "no such dataset directory"),
        (["--reference", tmp_path / "none", *previews], "none: no such reference"),
        ([*previews, "--set", "preview.protocol=nonsense"], "unknown protocol 'nonsense'"),
    ):
        code, _, err = _run(
            latents, "--workdir", tmp_path / "run", "--recipe", "debug", *options, "--dry-run"
        )
        assert (code, message in err) == (2, True), err


# Of every table something that is no default, and of every type.
CHANGED = [
    "model.depth=1",
    "model.qk_norm=true",
    "objective.label_drop=0.25",
    "optimizer.learning_rate=3e-5",
    "optimizer.clip_norm=1",
]
CHANGED += [
    "optimizer.schedule=rsqrt",
    "train.ema_extra=[0.5]",
    "train.steps=2",
    "train.keep_every=10",
    "train.flip=false",
]
CHANGED += [
    "sampler.cfg=1.5",
    "sampler.cfg_channels=3",
    "preview.cfg=[2.5]",
    "preview.protocol=other",
]


def test_the_printed_recipe_and_the_saved_one_can_be_loaded_again(latents: Path, tmp_path: Path):
    expected = load_recipe(find_recipe("debug"), CHANGED)
    for name, table in expected:
        assert table != getattr(load_recipe(find_recipe("debug")), name), name
    workdir, mine = tmp_path / "run", tmp_path / "mine.toml"
    sets = [part for change in CHANGED for part in ("--set", change)]
    code, out, err = _run(latents, "--workdir", workdir, "--recipe", "debug", *sets, "--dry-run")
    assert code == 0, err
    mine.write_text(out[: out.index("[plan]")])
    assert load_recipe(mine) == expected

    code, _, err = _run(latents, "--workdir", workdir, "--recipe", mine)
    assert code == 0, err
    mine.write_text(err[: err.index("\nstep ")])
    assert load_recipe(mine) == expected
    assert load_recipe(workdir / "recipe.toml") == expected
    assert read_run(workdir).recipe == expected
    code, out, err = _run(latents, "--workdir", workdir, "--recipe", workdir / "recipe.toml")
    assert (code, "step = 2" in out) == (0, True), err
