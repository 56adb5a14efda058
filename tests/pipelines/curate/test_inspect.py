"""What `inspect` counts is there, and what it draws is what the VAE makes of the stored records."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flowtrain.cli import main
from pipelines.curate.inspect import Inspection, grid_rows, inspect
from pipelines.dataset.anywhere import open_dataset
from pipelines.dataset.finished import LatentDataset
from pipelines.encoders.describe import describe_vae
from pipelines.encoders.weights import load_vae
from pipelines.grid import tile
from pipelines.preprocess.pipeline import preprocess
from schemas.manifest import Normalization
from schemas.pixels import to_uint8
from schemas.storage import paths
from tests.pipelines.datasets import VAE, make
from tests.pipelines.running import plan
from tests.pipelines.servers import Store


def command(*arguments: object) -> Result:
    return CliRunner().invoke(
        main, ["data", "inspect", *map(str, arguments)], catch_exceptions=False
    )


def test_histogram_counts_every_record_of_the_main_split(tmp_path: Path) -> None:
    make(
        tmp_path / "a",
        [{"x": "bee", "y": "bee"}, {}, {"z": "ant"}],
        classes=("ant", "bee", "cat"),
        flips=True,
    )
    result = command(tmp_path / "a", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["histogram"] == {"ant": 1, "bee": 2, "cat": 0}
    assert (facts["counts"]["written"], facts["layout"], facts["shards"]) == (3, "moments", 6)
    lines = command(tmp_path / "a").stdout.splitlines()
    assert lines[0] == "a, train, 8 px, latents"
    assert [line.split() for line in lines[-3:]] == [
        ["ant", "1", "#" * 20],
        ["bee", "2", "#" * 40],
        ["cat", "0"],
    ]


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(50))
    manifest = make(tmp_path / "a", [{"x": classes[3], "y": classes[40]}], classes=classes)
    dataset = open_dataset(str(tmp_path / "a"))
    counts = inspect(dataset).histogram
    assert sum(counts) == manifest.counts.written
    assert (counts[3], counts[40]) == (1, 1)
    text = Inspection(dataset, tuple(range(50))).to_text()
    *_, first, second, third, fourth, fifth, rest = text.splitlines()
    assert first == f"class 49  49  {'#' * 20}"
    assert [line[:12] for line in (second, third, fourth, fifth)] == [
        f"class {n}  {n}" for n in (48, 47, 46, 45)
    ]
    assert rest == "and 45 more classes of 0 to 44 records (22.0 on average)"
    assert Inspection(dataset, (1,) * 50).to_text().splitlines()[-6:-1] == [
        f"class {n}  1  #" for n in range(5)
    ]


def test_grid_of_moments_is_the_decoded_means(photos: Path, tiny_vae: Path, tmp_path: Path) -> None:
    preprocess(plan(photos, tmp_path / "out", vae=str(tiny_vae)), progress=False)
    result = command(tmp_path / "out", "--grid", tmp_path / "grid.png", "--num", 5, "--seed", 3)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"5 records drawn in {tmp_path / 'grid.png'}"
    drawn = np.asarray(Image.open(tmp_path / "grid.png"))
    chosen = np.sort(np.random.default_rng(3).choice(60, 5, replace=False))
    records = list(LatentDataset(tmp_path / "out").records())
    vae = load_vae(str(tiny_vae))
    means = np.stack([records[row].tensors["mean"] for row in chosen]).astype(np.float32)
    images = to_uint8(np.asarray(vae.decode(jnp.asarray(means))))
    expected = tile([images[:3], images[3:]])
    assert drawn.shape == expected.shape
    assert np.abs(drawn.astype(int) - expected.astype(int)).max() <= 1


def test_grid_of_pixels_is_the_stored_pixels(photos: Path, tmp_path: Path) -> None:
    preprocess(plan(photos, tmp_path / "out"), progress=False)
    rows = grid_rows(open_dataset(str(tmp_path / "out")), 100, 0)  # all there are
    assert [len(row) for row in rows] == [8] * 7 + [4]
    stored = np.stack(
        [record.tensors["image"] for record in LatentDataset(tmp_path / "out").records()]
    )
    np.testing.assert_array_equal(np.concatenate(rows), stored)


def test_grid_of_generated_latents_undoes_the_scale(tiny_vae: Path, tmp_path: Path) -> None:
    from pipelines.dataset.finished import finish_dataset
    from pipelines.dataset.shards import write_shard
    from schemas.layout import Layout, layout_tensors
    from schemas.manifest import ShardInfo
    from schemas.record import encode_record
    from schemas.storage.directory import Directory

    base = make(tmp_path / "base", [{"x": "ant"}])
    normalization = Normalization(offset=(0.5,) * 4, scale=(2.0,) * 4)
    specs = layout_tensors(Layout.LATENT, (4, 4, 4))
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float16)
    out = tmp_path / "out"
    out.mkdir()
    name = "latents-train.array_record-00000-of-00001"
    written = write_shard(out / name, [encode_record("x", 0, {"latent": latents[0]}, specs)])
    changes = {
        "layout": Layout.LATENT,
        "tensors": specs,
        "normalization": normalization,
        "vae": describe_vae(str(tiny_vae), None, "float32"),
        "resolution": 8,
        "shards": (ShardInfo(name=name, split="train", **written._asdict()),),
    }
    finish_dataset(Directory(str(out)), base.model_copy(update=changes))
    ((image,),) = grid_rows(open_dataset(str(out)), 1, 0)
    raw = latents.astype(np.float32) / 2 + 0.5
    expected = to_uint8(np.asarray(load_vae(str(tiny_vae)).decode(jnp.asarray(raw))))[0]
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


def test_what_is_no_dataset_is_told_from_one_that_is_not_finished(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "im.zip").touch()
    assert "im.zip is a file, not a dataset directory" in command(tmp_path / "im.zip").stderr
    result = command(photos)
    assert result.exit_code == 2
    assert "this is not a dataset; make one with `flowtrain preprocess`" in result.stderr
    for mark in ("settings.json", "merge.json", ".plan.json", ".work/index.jsonl"):
        path = tmp_path / Path(mark).stem / mark
        path.parent.mkdir(parents=True)
        path.touch()
        begun = command(tmp_path / Path(mark).stem)
        assert "repeat the `flowtrain` command that began it" in begun.stderr, mark


def test_an_empty_place_in_a_store_is_no_dataset(s3_store: Store) -> None:
    s3_store.proxy.reset()
    where = f"{s3_store.url}/nothing"
    assert "this is not a dataset" in command(where).stderr
    paths.write(paths.join(where, ".work/1/index.jsonl"), b"x")
    assert "repeat the `flowtrain` command that began it" in command(where).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no such dataset directory"),
        (("--grid", "grid.jpg"), "ends in .png"),
        (("--grid", "s3://bucket/grid.png"), "object stores are not served here"),
        (("--grid", "no/such/grid.png"), "no directory no/such"),
        (("--grid", "/proc/grid.png"), "the picture cannot be written there"),
        (("--num", "0"), "--num"),
        (("--num", "5"), "give --grid FILE.png as well"),
        (("--seed", "0"), "give --grid FILE.png as well"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = command(tmp_path / "nowhere", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("Usage:")


def test_a_vae_that_is_missing_is_told_before_the_records_are_counted(tmp_path: Path) -> None:
    make(tmp_path / "a", [{"x": "ant"}], vae=VAE.model_copy(update={"id": str(tmp_path / "gone")}))
    result = command(tmp_path / "a", "--grid", tmp_path / "grid.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"no such VAE directory: {tmp_path / 'gone'}" in result.stderr


def test_one_json_object_tells_where_the_picture_is(photos: Path, tmp_path: Path) -> None:
    preprocess(plan(photos, tmp_path / "out", shards=1), progress=False)
    result = command(tmp_path / "out", "--grid", tmp_path / "grid.png", "--num", 1, "--json")
    assert json.loads(result.stdout)["grid"] == str(tmp_path / "grid.png")
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (16, 16, 3)
    assert "1 file, " in command(tmp_path / "out").stdout
