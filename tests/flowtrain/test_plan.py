"""What a recipe and a dataset must agree on, and that latents reach the model in the right
scale.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from flowtrain.model import forward_macs
from flowtrain.plan import check_validation
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Normalization, read_manifest, write_manifest
from schemas.run import Run
from tests.flowtrain.damage import write_pixels
from tests.flowtrain.datasets import CLASSES, write_dataset
from tests.flowtrain.runs import debug_plan


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20)
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch_size=21"],
            r"batch_size 21 is larger than the dataset \(20 records\); lower it",
        ),
        (["train.holdout=15"], r"batch_size 8 is larger than the dataset \(5 records\)"),
        (["train.holdout=20"], r"train.holdout=20 leaves none of 20 records"),
        (["train.overfit=21"], r"train.overfit=21, but there are 20 records"),
        (
            ["model.latent=[32, 32, 4]"],
            r"latents of 32x32x4 and the dataset holds 4x4x4; .*=\[4, 4, 4\]",
        ),
        (
            ["model.classes=1000"],
            r"for 1000 classes and the dataset has 3; .* --set model.classes=3",
        ),
        (
            ["train.flip=true"],
            r"no mirrored encodings, .*; encode with `flowtrain preprocess --flips`",
        ),
        (["sampler.cfg_channels=5"], "sampler.cfg_channels 5: the latents have 4 channels; lower"),
    ],
)
def test_what_does_not_fit_is_one_line(latents: Path, overrides: list[str], message: str):
    with pytest.raises(UserError, match=message) as error:
        debug_plan(latents, *overrides)
    assert "\n" not in str(error.value)


def test_latents_that_patches_cannot_tile(tmp_path: Path):
    write_dataset(tmp_path, shape=(5, 5, 4), factor=8)
    with pytest.raises(
        UserError, match=r"resolution 40 is not divisible by VAE factor 8 x patch 2: .* 5x5"
    ):
        debug_plan(tmp_path)


def test_a_few_records_may_be_fewer_than_a_batch(latents: Path):
    assert len(debug_plan(latents, "train.overfit=2").selection) == 2


def test_the_summary_counts_what_is_trained_on(latents: Path):
    plan = debug_plan(latents, "train.holdout=4", "train.ema_extra=[0.9]", "train.steps=10")
    summary = plan.summary()
    assert (summary["records"], summary["trained_on"], summary["epochs"]) == (20, 16, 5.0)
    assert summary["checkpoint_bytes"] == 5 * 4 * summary["parameters"]
    assert plan.flops_per_image == 6 * forward_macs(plan.recipe.model, (4, 4, 4))


def test_a_run_knows_the_classes_without_records(latents: Path, tmp_path: Path):
    assert debug_plan(latents).run.sampled_classes == (0, 1, 2)
    shutil.copytree(latents, tmp_path / "some")
    manifest = read_manifest(latents).model_copy(update={"empty_classes": (1,)})
    write_manifest(tmp_path / "some", manifest)
    run = debug_plan(tmp_path / "some").run
    assert (run.empty_classes, run.sampled_classes) == ((1,), (0, 2))
    assert Run.model_validate_json(run.model_dump_json()) == run


def test_samples_that_are_in_model_scale_are_not_scaled_again(tmp_path: Path):
    manifest = write_dataset(tmp_path)
    applied = Normalization(offset=(1.0,) * 4, scale=(2.0,) * 4)
    write_manifest(tmp_path, manifest.model_copy(update={"normalization": applied}))
    plan = debug_plan(tmp_path)
    assert plan.from_stored == Normalization.identity(4)
    assert plan.run.normalization == applied, "decoding must undo what was applied"
    plan = debug_plan(tmp_path, "train.normalization=channel")
    assert plan.from_stored == manifest.channel_normalization()
    assert plan.run.normalization == applied.then(manifest.channel_normalization())


def test_a_dataset_to_validate_on_must_be_of_the_same_kind(latents: Path, tmp_path: Path):
    plan = debug_plan(latents)
    manifest = write_dataset(tmp_path, records=3)
    check_validation(plan, manifest, tmp_path)
    assert manifest.vae is not None
    for change, message in (
        ({"classes": CLASSES[:2]}, "the number of classes is 2, not 3"),
        ({"classes": CLASSES[::-1]}, "its classes have other names or another order"),
        (
            {"vae": manifest.vae.model_copy(update={"sha256": "f" * 64})},
            "the VAE is ffffffffffff, not 000000000000",
        ),
        ({"vae": None}, "the VAE is none"),
        ({"layout": Layout.LATENT}, "the layout is latent, not moments"),
        ({"normalization": Normalization.identity(4)}, "its latents are in another scale"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}: cannot validate on it: {message}"):
            check_validation(plan, manifest.model_copy(update=change), tmp_path)


def test_latents_without_a_scaling_factor_are_advised_to_normalise_by_channel(tmp_path: Path):
    manifest = write_dataset(tmp_path)
    assert debug_plan(tmp_path).advice is None, "this encoder has a scaling factor"
    vae = manifest.vae
    assert vae is not None
    unscaled = vae.model_copy(update={"scaling_factor": 1.0, "shift_factor": 0.0})
    write_manifest(tmp_path, manifest.model_copy(update={"vae": unscaled}))
    advice = debug_plan(tmp_path).advice
    assert advice is not None
    assert f"from {min(manifest.channels.std):.2f} to {max(manifest.channels.std):.2f}" in advice
    assert "--set train.normalization=channel" in advice
    assert debug_plan(tmp_path, "train.normalization=channel").advice is None
    write_manifest(tmp_path, manifest.model_copy(update={"vae": None}))
    assert debug_plan(tmp_path).advice is None, "pixels have the scale that they should"


def test_the_plan_says_where_mirror_images_come_from(latents: Path, tmp_path: Path):
    mirrored = {"train.flip=auto": "no", "train.flip=false": "no"}
    assert {flip: debug_plan(latents, flip).mirrored for flip in mirrored} == mirrored
    write_dataset(tmp_path / "flips", flips=True)
    for flip, told in (("auto", "stored encodings"), ("true", "stored encodings"), ("false", "no")):
        plan = debug_plan(tmp_path / "flips", f"train.flip={flip}")
        assert plan.summary()["mirrored"] == told
    typed, left_out = (
        debug_plan(tmp_path / "flips", f"train.flip={flip}") for flip in ("true", "auto")
    )
    assert typed.run == left_out.run, "the same batches are the same run"
    images = np.zeros((20, 8, 8, 3), np.uint8)
    write_pixels(tmp_path / "pixels", images)
    for flip, told in (("auto", "no"), ("true", "pixels, as they are read"), ("false", "no")):
        plan = debug_plan(tmp_path / "pixels", f"train.flip={flip}", "model.latent=[8, 8, 3]")
        assert plan.mirrored == told
