"""The commands from end to end on a tiny run, and what they say to a user's mistake."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.features.imagesets import dataset_images
from schemas.manifest import MANIFEST_NAME
from schemas.run import RUN_NAME
from schemas.statistics import FeatureStatistics, read_statistics, write_statistics
from tests.evaluation import tiny
from tests.evaluation.commands import call, fail, start, succeed
from tests.evaluation.conftest import World

pytestmark = pytest.mark.usefixtures("tiny_protocol")


# stats


def test_stats_of_a_dataset_a_folder_and_a_batch_agree(
    world: World, reference: Path, tmp_path: Path
) -> None:
    batch = dataset_images(world.dataset).read(0, 30)
    for i, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        folder = tmp_path / "folder" / tiny.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    np.savez(tmp_path / "batch.npz", batch.images)
    folder, side = tmp_path / "folder", tiny.SIDE
    succeed(
        "stats",
        folder,
        tmp_path / "folder.npz",
        "--extractor",
        "tiny",
        "--resolution",
        side,
        "--crop",
        "none",
    )
    shown = succeed(
        "stats", tmp_path / "batch.npz", tmp_path / "b.npz", "--extractor", "tiny", "--json"
    ).stdout
    expected = read_statistics(reference)
    for path in (tmp_path / "folder.npz", tmp_path / "b.npz"):
        np.testing.assert_allclose(read_statistics(path).mu, expected.mu, rtol=1e-9)
        np.testing.assert_allclose(read_statistics(path).sigma, expected.sigma, rtol=1e-7)
    of_folder, of_dataset = (
        read_statistics(tmp_path / "folder.npz").protocol["images"],
        expected.protocol["images"],
    )
    assert of_folder["correct"] == of_dataset["correct"]
    assert json.loads(shown.splitlines()[-1])["images"]["correct"] is None, "a batch has no labels"
    assert (
        "against 30 images: 0.0000"
        in succeed("eval", folder, "--reference", reference, "--protocol", "tiny").stdout
    )


def test_unreadable_images_are_counted_and_limited(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "o.npz"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes(b"no picture")
    command = ["stats", folder, out, "--extractor", "tiny", "--resolution", 8, "--json"]
    refused = "1 of 5 images cannot be read, more than --max-bad-fraction 0.01; mend them"
    assert refused in fail(*command)
    assert not out.exists()
    shown = succeed(*command, "--max-bad-fraction", 0.2)
    facts = json.loads(shown.stdout.splitlines()[-1])["images"]
    assert (facts["n"], facts["rejected"], facts["num"]) == (4, 1, 5)
    assert "4 images of 8 pixels, 1 unreadable" in shown.stdout
    assert "rank" in shown.stderr
    compared = ["eval", folder, "--reference", out, "--protocol", "tiny"]
    assert refused in fail(*compared)
    told = succeed(*compared, "--max-bad-fraction", 0.2).stderr
    for where in (folder, out):
        assert f"{where}: 1 unreadable images are left out" in told


def test_images_that_were_mended_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "zero"
    folder.mkdir(parents=True)
    for i, pixels in enumerate(
        np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    ):
        Image.fromarray(pixels).save(folder / f"{i}.bmp")
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in whole.items():
        path.write_bytes(bytes(len(content)))  # of the same name and size
    command = [
        "stats",
        tmp_path / "images",
        tmp_path / "out.npz",
        "--resolution",
        8,
        "--extractor",
        "tiny",
    ]
    assert "0 readable images (3 unreadable): statistics need at least 2" in fail(*command)
    for path, content in whole.items():
        path.write_bytes(content)
    assert "3 images of 8 pixels" in succeed(*command).stdout


def test_stats_always_measures_and_replaces_only_statistics(
    world: World, reference: Path, tmp_path: Path
) -> None:
    def again(*options: object) -> bytes:
        succeed("stats", world.dataset, reference, "--extractor", "tiny", *options)
        return reference.read_bytes()

    good, stamp = reference.read_bytes(), reference.stat().st_mtime_ns
    assert again() == good
    assert reference.stat().st_mtime_ns != stamp, (
        "measured again: an image may have changed under its name"
    )
    reference.write_bytes(good[: len(good) // 2])
    assert again() == good
    assert again("--num", 20) != good
    np.savez(tmp_path / "batch.npz", np.zeros((3, 8, 8, 3), np.uint8))
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "thesis.txt").write_text("precious")
    for name in ("batch.npz", "array.npz", "thesis.txt", "."):
        assert "is not feature statistics" in fail(
            "stats", world.dataset, tmp_path / name, "--extractor", "tiny"
        )
    assert (tmp_path / "thesis.txt").read_text() == "precious"


# sample


def test_sample_draws_one_class_by_name_or_number(world: World, tmp_path: Path) -> None:
    options = ["--steps", 1, "--cfg", 1, "--num", 3]
    succeed("sample", world.workdir, tmp_path / "a.npz", "--class", "two", *options)
    succeed("sample", world.workdir, tmp_path / "b.npz", "--class", "2", *options)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["arr_1"].tolist() == [2, 2, 2]
        np.testing.assert_array_equal(a["arr_0"], b["arr_0"])
    assert "did you mean 'two'?" in fail(
        "sample", world.workdir, tmp_path / "c.png", "--class", "tow"
    )


def test_seeds_that_give_the_samples_of_others_are_refused(
    workdir: Path, reference: Path, tmp_path: Path
) -> None:
    for arguments in (
        ["sample", workdir, tmp_path / "x"],
        ["eval", workdir, "--reference", reference],
    ):
        assert "0<=x<=4294967295" in call(*arguments, "--seed", 2**32, "--dry-run").stderr
        assert call(*arguments, "--seed", 2**32 - 1, "--dry-run").exit_code == 0


def test_the_solver_is_the_recipes_unless_it_is_typed(workdir: Path, tmp_path: Path) -> None:
    tiny.as_diffusion(workdir, solver="ddpm")
    options = ["--steps", 2, "--cfg", 1, "--num", 3]
    for name, typed in {
        "default": [],
        "ddpm": ["--solver", "ddpm"],
        "ddim": ["--solver", "ddim"],
    }.items():
        succeed("sample", workdir, tmp_path / f"{name}.npz", *options, *typed)
    default, ddpm, ddim = (
        np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("default", "ddpm", "ddim")
    )
    np.testing.assert_array_equal(default, ddpm)
    assert (default != ddim).any()
    assert (
        "ddpm, 2 steps"
        in succeed("sample", workdir, tmp_path / "x.png", *options, "--dry-run").stdout
    )


def test_a_solver_that_does_not_go_with_the_objective_is_refused(
    workdir: Path, reference: Path, tmp_path: Path
) -> None:
    tiny.as_diffusion(workdir)
    commands = (
        ["sample", workdir, tmp_path / "x.npz"],
        ["eval", workdir, "--reference", reference],
    )
    for command in commands:
        told = fail(*command, "--solver", "euler", "--dry-run")
        assert (
            told
            == "Error: --solver euler does not go with objective.kind diffusion; use ddim or ddpm"
        )
        told = fail(*command, "--steps", "1001", "--dry-run")
        assert told == "Error: --steps 1001: the run has only 1000 noise levels; take fewer"
        assert (
            "'eulr' is not one of 'euler', 'heun', 'midpoint'"
            in call(*command, "--solver", "eulr").stderr
        )


# eval


def test_finished_images_are_only_compared(world: World, reference: Path, tmp_path: Path) -> None:
    for subject in (reference, world.dataset):
        shown = succeed(
            "eval", subject, "--reference", reference, "--protocol", "tiny", "--json"
        ).stdout
        line = json.loads(shown.splitlines()[-1])
        assert line["fd"] == pytest.approx(0, abs=1e-9)
        assert "steps" not in line
    succeed("sample", world.workdir, tmp_path / "batch.npz", "--num", 9, "--steps", 1, "--cfg", 1)
    shown = succeed(
        "eval", tmp_path / "batch.npz", "--reference", reference, "--protocol", "tiny", "--json"
    ).stdout
    assert json.loads(shown.splitlines()[-1])["fd"] > 0.001


def test_the_uncertainty_of_finished_images_needs_no_rows_of_the_reference(
    world: World, tmp_path: Path
) -> None:
    sums = tmp_path / "sums.npz"
    succeed("stats", world.dataset, sums, "--extractor", "tiny")
    images = np.random.default_rng(0).integers(
        0, 256, (40, tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8
    )
    np.savez(tmp_path / "batch.npz", images)
    command = [
        "eval",
        tmp_path / "batch.npz",
        "--reference",
        sums,
        "--protocol",
        "tiny",
        "--metrics",
    ]
    assert (
        "fd_infinity"
        in json.loads(succeed(*command, "uncertainty", "--json").stdout.splitlines()[-1])["metrics"]
    )
    assert "holds sums only; repeat its `flowtrain stats` with --features" in fail(*command, "pr")


def test_statistics_of_other_evaluators_are_compared_without_any_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    np.savez(first, mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(second, mu=np.full(2048, 0.5), sigma=4 * np.eye(2048))
    shown = succeed("eval", first, "--reference", second, "--protocol", "adm", "--json")
    assert json.loads(shown.stdout.splitlines()[-1])["fd"] == pytest.approx(
        2048 * (0.25 + 1), rel=1e-12
    )
    assert shown.stdout.startswith(
        "FD(inception-2015-12-05, weights not said), given statistics against given statistics"
    )
    for name in ("first.npz", "second.npz"):
        told = (
            f"{name}: does not say with which extractor it was made; taken for inception-2015-12-05"
        )
        assert told in shown.stderr
    np.savez(first, mu=np.zeros(7), sigma=np.eye(7))
    told = fail("eval", first, "--reference", second, "--protocol", "adm")
    assert "first.npz: features of dimension 7, but inception-2015-12-05 gives 2048" in told


@pytest.mark.usefixtures("unrendered")
def test_too_few_samples_are_warned_of_with_numbers(workdir: Path, reference: Path) -> None:
    options = ["--steps", "1", "--cfg", "1", "--num-samples", 4, "--protocol", "tiny"]
    shown = succeed("eval", workdir, "--reference", reference, *options)
    assert "Warning: 4 samples give a covariance of rank 3 in 5 dimensions" in shown.stderr


# dry runs


def test_dry_runs_write_nothing(workdir: Path, reference: Path, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    plan = succeed(
        "eval", workdir, "--reference", reference, "--steps", "9,1", "--cfg", "1,4", "--dry-run"
    ).stdout
    assert "30,000" in plan, "evaluations of the network: (9 + 1) * (1 + 2) * 1000"
    assert (
        "20 a sample"
        in succeed("sample", workdir, tmp_path / "x", "--steps", 10, "--cfg", 4, "--dry-run").stdout
    )
    assert (
        "4000"
        in succeed(
            "stats", "embedded:digits", tmp_path / "x.npz", "--resolution", 32, "--dry-run"
        ).stdout
    )
    succeed("report", workdir, "--dry-run")
    assert sorted(path for path in tmp_path.rglob("*")) == before


# bad input


def test_mistakes_about_the_run(workdir: Path, reference: Path, tmp_path: Path) -> None:
    tiny_eval = ["--reference", reference, "--protocol", "tiny"]
    assert "nothing there" in fail("eval", tmp_path / "nowhere", *tiny_eval)
    assert f"no {RUN_NAME}" in fail("sample", tmp_path, tmp_path / "x.png")
    assert "no checkpoint of step 7; there are 3" in fail(
        "sample", workdir, tmp_path / "x.png", "--step", 7
    )
    assert "the model has 4 channels" in fail("eval", workdir, *tiny_eval, "--cfg-channels", 5)
    for command in (["eval", workdir, *tiny_eval], ["sample", workdir, tmp_path / "x.png"]):
        assert "no weights 'ema0.5'; this run keeps ema, params" in fail(
            *command, "--weights", "ema0.5"
        )
    assert "no directory" in fail("sample", workdir, tmp_path / "no" / "x.png")
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint" in fail("eval", workdir, *tiny_eval)
    assert "no checkpoint" in fail("sample", workdir, tmp_path / "x.png")
    assert not (workdir / "samples").exists()


def test_a_lone_array_is_not_statistics(reference: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.npz"
    with open(lone, "wb") as file:
        np.save(file, np.zeros(5))
    assert "not a readable .npz" in fail(
        "eval", lone, "--reference", reference, "--protocol", "tiny"
    )


def test_mistakes_about_the_protocol(workdir: Path, reference: Path) -> None:
    assert "did you mean 'embedded'?" in fail(
        "eval", workdir, "--reference", reference, "--protocol", "embeded"
    )
    assert "known are" in fail("stats", workdir, "x.npz", "--extractor", "zzz")


def test_mistakes_about_the_reference(
    workdir: Path, world: World, reference: Path, tmp_path: Path
) -> None:
    def told(path: Path) -> str:
        return fail("eval", workdir, "--reference", path, "--protocol", "tiny")

    assert "no such reference; make one" in told(tmp_path / "missing.npz")
    assert "no dataset; of a folder of images make `flowtrain stats" in told(tmp_path)
    good = read_statistics(reference)

    def changed(**changes: object) -> Path:
        path = tmp_path / "changed.npz"
        write_statistics(
            path, FeatureStatistics(good.mu, good.sigma, good.moments, {**good.protocol, **changes})
        )
        return path

    assert "measured with extractor other, the samples with tiny" in told(
        changed(extractor="other")
    )
    assert "measured with extractor_digest 111111111111..." in told(
        changed(extractor_digest="1" * 64)
    )
    assert "measured with resolution 64, the samples with 8" in told(changed(resolution=64))
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, mu=np.zeros(7), sigma=np.eye(7))
    assert "features of dimension 7, but tiny gives 5" in told(foreign)
    np.savez(foreign, mu=np.zeros(5), sigma=np.eye(4))
    assert "do not belong together" in told(foreign)
    np.savez(foreign, data=np.zeros(5))
    assert "not the mu and sigma" in told(foreign)
    np.savez(foreign, mu=np.array([{}], dtype=object), sigma=np.eye(5))
    assert "not a readable .npz of plain arrays" in told(foreign)
    foreign.write_bytes(b"PK\x03\x04 not a zip")
    assert "not a readable .npz" in told(foreign)
    # symmetric, 1 on its diagonal
    np.savez(foreign, mu=np.zeros(5), sigma=np.eye(5) + 2 - 2 * np.eye(5))
    assert "sigma is not a covariance: eigenvalue -1" in told(foreign)
    assert "sigma is not a covariance" in fail(
        "eval", foreign, "--reference", reference, "--protocol", "tiny"
    )
    assert not (workdir / "samples").exists(), "told before any work"


@pytest.mark.usefixtures("unrendered")
def test_a_reference_without_its_extractor_is_warned_of(
    workdir: Path, reference: Path, tmp_path: Path
) -> None:
    good = read_statistics(reference)
    np.savez(tmp_path / "foreign.npz", mu=good.mu, sigma=good.sigma)
    options = ["--steps", "1", "--cfg", "1", "--num-samples", 10, "--protocol", "tiny"]
    shown = succeed("eval", workdir, "--reference", tmp_path / "foreign.npz", *options)
    assert "does not say with which extractor" in shown.stderr


def test_mistakes_about_images(world: World, reference: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(world.dataset, tmp_path / "latents"))
    out = tmp_path / "x.npz"
    assert "holds 30 images, not 31" in fail(
        "stats", dataset, out, "--num", 31, "--extractor", "tiny"
    )
    assert "no split 'test'" in fail(
        "stats", dataset, out, "--split", "test", "--extractor", "tiny"
    )
    assert "a dataset of 8 pixels, not 16" in fail(
        "stats", dataset, out, "--resolution", 16, "--extractor", "tiny"
    )
    shard = dataset / world.manifest.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-10])
    assert shard.name in fail("stats", dataset, out, "--extractor", "tiny")
    (dataset / MANIFEST_NAME).unlink()
    assert "no manifest.json" in fail("stats", dataset, out, "--extractor", "tiny")
    assert "no manifest.json" in fail(
        "eval", dataset, "--reference", reference, "--protocol", "tiny"
    )
    assert "--resolution" in fail("stats", "embedded:digits", out, "--extractor", "tiny")
    assert "no such folder" in fail(
        "stats", tmp_path / "nowhere", out, "--resolution", 8, "--extractor", "tiny"
    )
    np.savez(tmp_path / "floats.npz", np.zeros((3, 8, 8, 3)))
    assert "samples must be uint8" in fail(
        "stats", tmp_path / "floats.npz", out, "--extractor", "tiny"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "option", [("--steps", "10,x"), ("--steps", "0"), ("--cfg", "-1"), ("--cfg", "nan")]
)
def test_lists_of_numbers_are_checked(
    workdir: Path, reference: Path, option: tuple[str, str]
) -> None:
    result = call("eval", workdir, "--reference", reference, *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


@pytest.mark.parametrize("name", ["sample", "eval", "stats"])
def test_an_interrupt_is_one_line_and_soon(
    name: str, world: World, reference: Path, workdir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz" if name == "stats" else tmp_path / "out"
    batch = tmp_path / "batch.npz"
    many = ["20000", "--batch-size", "8"]
    compared = ["--reference", reference, "--protocol", "tiny"]
    command, begun = {
        "sample": ([workdir, out, "--num", *many], out),
        "eval": ([workdir, *compared, "--num-samples", *many], workdir / "samples"),
        "stats": ([batch, out, "--extractor", "tiny"], tmp_path / "out.npz.failure"),
    }[name]
    if name == "stats":
        np.savez(batch, np.zeros((100_000, tiny.SIDE, tiny.SIDE, 3), np.uint8))
    process = start(name, *command)
    deadline = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    bars_and_warnings = re.compile(r".*%\||Warning: |\s*$")
    told = [line for line in errors.splitlines() if not bars_and_warnings.match(line)]
    assert told == ["Interrupted; repeat the command to go on."]
    assert time.monotonic() - sent < 30
    assert not out.is_file(), "it was not done yet"
