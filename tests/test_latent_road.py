"""Latents of an encoder without a posterior go the whole road, from images to a report."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flowtrain.cli import main
from pipelines.dataset.finished import LatentDataset
from pipelines.dataset.shard_results import ChannelSums
from pipelines.encoders.decode import decode_records
from schemas.layout import Layout
from schemas.manifest import Normalization, read_manifest
from schemas.run import read_run
from tests.pipelines.tiny_halves import random_halves, write_halves

CLASSES = ("ant", "bee")
COUNT = 24


def run(*words: object, fails: bool = False) -> str:
    """A command in this process, which has imported everything; what it printed."""
    done = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == (2 if fails else 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("encoder") / "tiny", random_halves())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / CLASSES[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def latents(encoder: Path, photos: Path) -> Path:
    out = photos.parent / "latents"
    run(
        "preprocess",
        photos,
        out,
        "--vae",
        encoder,
        "--resolution",
        32,
        "--shards",
        2,
        "--min-psnr",
        0,
    )
    return out


def test_the_dataset_holds_raw_latents_and_says_so(latents: Path):
    manifest = read_manifest(latents)
    assert manifest.vae is not None
    assert (manifest.layout, manifest.vae.network) == (Layout.LATENT, "AutoencoderTiny")
    assert manifest.tensors["latent"].shape == (4, 4, 32)
    assert manifest.normalization is None
    assert not manifest.generated
    assert manifest.reconstruction is not None
    records = list(LatentDataset(latents).records())
    stacked = {"latent": np.stack([record.tensors["latent"] for record in records])}
    found = ChannelSums.of(Layout.LATENT, stacked).statistics()
    np.testing.assert_allclose(found.mean, manifest.channels.mean, atol=1e-12)
    np.testing.assert_allclose(found.std, manifest.channels.std, rtol=1e-12)
    assert "without a posterior" in (latents / "README.md").read_text()


def test_verified_compared_merged_and_drawn(latents: Path, tmp_path: Path):
    run("data", "verify", latents)
    assert "24 records are the same" in run("data", "diff", latents, latents)
    grid = tmp_path / "grid.png"
    assert "AutoencoderTiny" in run("data", "inspect", latents, "--grid", grid)
    assert np.asarray(Image.open(grid)).std() > 5


def test_trained_on_sampled_and_measured(latents: Path, photos: Path, tmp_path: Path):
    """The samples that a run stores are in its scale, and decode to the pixels that `sample`
    draws.
    """
    workdir, drawn = tmp_path / "run", tmp_path / "drawn"
    overrides = (
        "train.normalization=channel",
        "train.steps=2",
        "train.batch_size=8",
        "preview.every=0",
    )
    words = [word for override in overrides for word in ("--set", override)]
    run("train", latents, "--workdir", workdir, "--recipe", "debug", *words)
    manifest = read_manifest(latents)
    normalization = read_run(workdir).normalization
    assert normalization == manifest.channel_normalization()
    run("sample", workdir, drawn, "--num", 4, "--steps", 2, "--cfg", 1)
    samples = read_manifest(drawn)
    assert samples.generated
    assert samples.stored_normalization() == normalization
    reference = tmp_path / "reference.npz"
    run("stats", photos, reference, "--resolution", 32, "--protocol", "embedded")
    told = run(
        *("eval", workdir, "--reference", reference, "--protocol", "embedded"),
        *("--steps", 2, "--cfg", 1, "--num-samples", 8, "--json"),
    )
    assert json.loads(told.splitlines()[-1])["fd"] > 0
    run("report", workdir)
    assert (workdir / "report.html").stat().st_size > 100_000


def test_stored_latents_decode_as_they_were_encoded(latents: Path):
    dataset = LatentDataset(latents)
    records = list(dataset.records())[:2]
    scaled = dataset.manifest.model_copy(
        update={"normalization": Normalization(offset=(0.0,) * 32, scale=(2.0,) * 32)}
    )
    raw = decode_records(dataset.manifest, records)
    assert raw.shape == (2, 32, 32, 3)
    assert (decode_records(scaled, records) != raw).any(), "a scale that is stated is undone"
    vae = dataset.manifest.vae
    assert vae is not None
    factored = dataset.manifest.model_copy(
        update={"vae": vae.model_copy(update={"scaling_factor": 0.5})}
    )
    np.testing.assert_array_equal(
        decode_records(factored, records), raw, "a scaling factor is the model's, not raw"
    )


def test_sizes_that_do_not_fit_and_encoders_alone(encoder: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    told = run("preprocess", photos, out, "--vae", encoder, "--resolution", 30, fails=True)
    assert "--resolution 30 is not divisible by 8" in told
    assert told.count("\n") == 1
    assert not out.exists()
    alone = write_halves(tmp_path / "alone", {"encoder": random_halves()["encoder"]})
    run("preprocess", photos, out, "--vae", alone, "--resolution", 32, "--shards", 1)
    assert read_manifest(out).reconstruction is None
    write_halves(alone, {"decoder": random_halves()["decoder"]})
    told = json.loads(
        run("preprocess", photos, out, "--vae", alone, "--resolution", 32, "--shards", 1, "--json")
    )
    assert told["state"] == "was finished already", "a decoder that comes later changes nothing"
    (alone / "taef2_decoder.safetensors").unlink()
    told = run("data", "inspect", out, "--grid", tmp_path / "grid.png", fails=True)
    assert (
        "there is no decoder; put NAME_decoder.safetensors beside NAME_encoder.safetensors there"
        in told
    )
    assert told.count("\n") == 1
