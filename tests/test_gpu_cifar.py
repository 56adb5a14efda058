"""The part `cifar` of `benchmarks/gpu.py`: its loop is that of `flowtrain train`, and a later call
goes on.
"""

import io
import json
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.gpu_parts import cifar, cifar_score, inputs, results
from benchmarks.gpu_parts.cifar import COUNTS
from benchmarks.gpu_parts.cifar_data import Latents, encode
from benchmarks.gpu_parts.cifar_score import Drawn, Scorer
from benchmarks.gpu_parts.cifar_train import Training, advance_together
from benchmarks.gpu_parts.part import Context
from benchmarks.gpu_parts.parts import PARTS
from flowtrain.plan import Plan
from flowtrain.state.checkpoint import load_for_sampling
from schemas.config import Recipe
from schemas.errors import UserError
from schemas.manifest import ChannelStatistics, Normalization
from schemas.recipes import make_recipe
from schemas.run import RUN_NAME, read_run
from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import debug_plan, run_debug, saved
from tests.gpu_script import blocker, call

OVERRIDES = ("train.steps=6", "train.holdout=4", "train.ema_extra=[0.5]", "train.log_every=2")


def latents_of(plan: Plan) -> Latents:
    """All records of a dataset, as the part holds them."""
    manifest = plan.reader.manifest
    columns = plan.reader.gather(np.arange(len(plan.reader)), np.zeros(len(plan.reader), np.bool_))
    tensors = {name: columns[name] for name in ("mean", "logvar")}
    assert manifest.vae is not None
    return Latents(
        tensors,
        columns["label"],
        manifest.classes,
        manifest.vae,
        manifest.resolution,
        plan.run.dataset.digest,
    )


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_loop_ends_with_the_bits_of_the_trainer(tmp_path: Path):
    write_dataset(tmp_path / "latents")
    plan = debug_plan(tmp_path / "latents", *OVERRIDES)
    run_debug(tmp_path / "latents", tmp_path / "theirs", *OVERRIDES)
    latents = latents_of(plan)
    assert latents.normalization("vae") == plan.run.normalization
    for pause in (2, 6):
        with Training(plan.run, latents, tmp_path / "ours") as training:
            training.advance(pause)
            training.save()
            assert training.progress().step == pause
    ours, data, meta = saved(plan, tmp_path / "ours", 6)
    theirs, their_data, their_meta = saved(plan, tmp_path / "theirs", 6)
    assert_same(ours, theirs)
    assert (data, meta["step"], meta["dataset"]) == (
        their_data,
        their_meta["step"],
        their_meta["dataset"],
    )
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 6]


def test_a_directory_of_another_run_is_refused(tmp_path: Path):
    write_dataset(tmp_path / "latents")
    plan = debug_plan(tmp_path / "latents", *OVERRIDES)
    latents, workdir = latents_of(plan), tmp_path / "run"
    Training(plan.run, latents, workdir).__exit__(None, None, None)
    before = (workdir / RUN_NAME).read_bytes()
    for override in (
        "optimizer.learning_rate=0.5",
        "train.holdout=3",
        "train.overfit=2",
        "train.ema_decay=0.3",
    ):
        other = debug_plan(tmp_path / "latents", *OVERRIDES, override)
        with pytest.raises(
            UserError, match=f"{override.partition('=')[0]} was .*; give another --work"
        ):
            Training(other.run, latents, workdir)
    scaled = Normalization(offset=(0.0,) * latents.shape[-1], scale=(9.0,) * latents.shape[-1])
    with pytest.raises(UserError, match="other normalization"):
        Training(plan.run.model_copy(update={"normalization": scaled}), latents, workdir)
    assert (workdir / RUN_NAME).read_bytes() == before
    longer = debug_plan(tmp_path / "latents", *OVERRIDES, "train.steps=9", "sampler.cfg=1.5")
    Training(longer.run, latents, workdir).__exit__(None, None, None)
    assert read_run(workdir).recipe == longer.run.recipe


def test_runs_end_at_one_step_whenever_the_time_is_over(tmp_path: Path):
    write_dataset(tmp_path / "latents")
    plan = debug_plan(tmp_path / "latents", *OVERRIDES, "train.steps=50")
    latents = latents_of(plan)

    def both(goal: int, turns: int) -> list[int]:
        over = iter([False] * turns)
        with ExitStack() as stack:
            pair = [
                stack.enter_context(Training(plan.run, latents, tmp_path / name))
                for name in ("one", "two")
            ]
            advance_together(pair, goal, lambda: next(over, True))
            return [training.step for training in pair]

    # as a call that was killed may leave it
    with Training(plan.run, latents, tmp_path / "one") as ahead:
        ahead.advance(30)
        ahead.save()
    assert both(50, turns=0) == [30, 0]
    assert both(50, turns=1) == [30, 20]
    assert both(50, turns=1) == [40, 40]
    assert both(50, turns=9) == [50, 50]
    for name in ("one", "two"):
        assert load_for_sampling(tmp_path / name, 50).step == 50


class Counting(Scorer):
    """Draws grey images, and counts how often."""

    drawn = 0

    def _draw(self, trained: Any, recipe: Recipe, drawn: Drawn) -> np.ndarray:
        self.drawn += 1
        return np.full((drawn.count, 16, 16, 3), 128, np.uint8)


def test_a_score_is_only_remembered_for_what_it_was_measured_of(tmp_path: Path):
    options = {"encoder": "embedded"}
    context = Context("cifar", "", tmp_path, tmp_path / "rows", True, time.time() + 600, options)
    (tmp_path / "cifar" / "flow").mkdir(parents=True)
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    scorer = Counting(context, encode(context, 16, pixels, np.zeros(2, np.int32), ("one",)), pixels)
    trained: Any = SimpleNamespace(step=3, weights="ema")

    def measure(*overrides: str, steps: int = 5) -> int:
        recipe = make_recipe(
            {"model": {"size": "debug"}, "train": {"steps": 9, "batch_size": 2}}, overrides
        )
        scorer.samples("flow", trained, recipe, Drawn(steps, 2.0, 10), shown=False)
        return scorer.drawn

    assert [measure(), measure()] == [1, 1]
    assert measure(steps=6) == 2
    assert measure("sampler.shift=2") == 3
    assert measure("sampler.cfg_channels=3") == 4
    assert measure("sampler.cfg_interval=[0.1,0.9]") == 5
    assert measure("sampler.cfg_interval=[0.1,0.9]") == 5
    scorer._facts = {"protocol": "adm", "extractor": "f" * 64}
    assert measure() == 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar_score, "_SEED", 1)
        assert measure() == 7
    assert measure() == 7


def test_channels_are_measured_as_a_manifest_has_them(tmp_path: Path):
    """The deviation of a posterior sample: that of the means and the mean variance around them."""
    write_dataset(tmp_path / "latents", logvar={0: 2.0})
    plan = debug_plan(tmp_path / "latents")
    latents = latents_of(plan)
    means, logvar = (latents.tensors[name].astype(np.float64) for name in ("mean", "logvar"))
    mean, std = (
        means.mean((0, 1, 2)),
        np.sqrt(means.var((0, 1, 2)) + np.exp(logvar).mean((0, 1, 2))),
    )
    manifest = plan.reader.manifest.model_copy(
        update={"channels": ChannelStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))}
    )
    found, expected = latents.normalization("channel"), manifest.channel_normalization()
    np.testing.assert_allclose(found.offset, expected.offset, rtol=1e-12)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-12)


def write_images(path: Path, count: int = 20) -> None:
    """A tar of JPEGs of 32x32 pixels in two folders, as CIFAR-10's."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(content, "JPEG")
            member = tarfile.TarInfo(f"{'cat' if number % 2 else 'dog'}/{number:04}.jpg")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"recipe": "cifar"}, "unknown recipe 'cifar'"),
        ({"set": ["model.dept=3"]}, "unknown key model.dept"),
        ({"weights": "ema0.5"}, "--weights ema0.5: the flow keeps ema, ema0.999, params"),
        ({"diffusion_recipe": "debug"}, r"train.steps are 100000 \(flow\) and 20 \(diffusion\)"),
    ],
)
def test_a_wrong_recipe_is_told_before_images_are_read(
    tmp_path: Path, mistake: dict[str, Any], told: str
):
    names = {
        "recipe": "cifar10-64-taef2-dit-s",
        "diffusion_recipe": "cifar10-64-taef2-dit-s-diffusion",
    }
    options = {**names, "set": [], "weights": "ema0.999", "resolution": 64, "reserve": 0, **mistake}
    context = Context("cifar", "", tmp_path, tmp_path / "rows", True, time.time() + 600, options)
    with pytest.raises(UserError, match=told):
        cifar.run(context)  # there are no images, which would be told


def test_the_part_goes_on_where_an_earlier_call_paused(tmp_path: Path):
    """On a machine that has only what the part names; without Inception's weights nothing is
    measured.
    """
    work = tmp_path / "work"
    (work / inputs.INPUTS).mkdir(parents=True)
    write_images(tmp_path / "images.tar")
    inputs.pack_images(tmp_path / "images.tar", work / inputs.INPUTS / inputs.CIFAR)
    words = [
        "--work",
        work,
        "--tiny",
        "--parts",
        "cifar",
        "--encoder",
        "embedded",
        "--resolution",
        16,
    ]
    words += ["--recipe", "debug", "--diffusion-recipe", "cifar10-64-taef2-dit-s-diffusion"]
    words += ["--set", "model.latent=[4,4,4]", "--set", "model.classes=2", "--set", "train.steps=5"]
    site = blocker(PARTS["cifar"].packages)
    for status in (results.UNFINISHED, results.DONE):
        done = call(*words, site=site, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        attempt = results.read(work)[-1]
        assert attempt["status"] == status, attempt["reason"]
    first, second = ({row["of"]: row for row in attempt["rows"]} for attempt in results.read(work))
    assert [
        rows[f"training, {kind}"]["step"]
        for rows in (first, second)
        for kind in ("flow", "diffusion")
    ] == [
        *(3, 3),
        *(5, 5),
    ]
    assert first["data"]["latent"] == [4, 4, 4]
    assert (first["data"]["records"], first["data"]["held_out"]) == (18, 2)
    drawn = [row for row in results.read(work)[-1]["rows"] if row["of"] in ("flow", "diffusion")]
    settings = [(row["sampling_steps"], row["cfg"], row["of"]) for row in drawn]
    assert settings == [
        (steps, cfg, kind) for steps in COUNTS for cfg in (1, 4) for kind in ("flow", "diffusion")
    ]
    assert all(row["distance"] is None and row["step"] == 5 for row in drawn)
    pictures = [
        path
        for kind in ("flow", "diffusion")
        for path in (work / "pictures").glob(f"{kind}-5-*.png")
    ]
    assert len(pictures) == 20
    table = (work / results.TABLE_NAME).read_text().splitlines()
    (header, *_) = (line for line in reversed(table) if line.startswith("| of |"))
    held_row = next(line for line in reversed(table) if line.startswith("| held-out images |"))
    cells = dict(zip(header.split("|"), held_row.split("|"), strict=True))
    assert (cells[" samples "], cells[" of "]) == (" 2 ", " held-out images ")
    assert "cifar: done before" in call(*words, site=site, folder=tmp_path).stdout
