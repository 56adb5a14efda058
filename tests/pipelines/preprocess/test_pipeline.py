"""The pipeline against a direct computation of the same thing, and what it leaves behind."""

import functools
import json
import math
import shlex
import shutil
import tarfile
import uuid
from pathlib import Path
from typing import Any

import apache_beam as beam
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from PIL import Image

from pipelines.dataset.finished import LatentDataset
from pipelines.dataset.shard_results import ShardResult, marker_name
from pipelines.encoders.encode import PixelEncoder
from pipelines.encoders.weights import load_vae
from pipelines.preprocess.identity import dataset_build
from pipelines.preprocess.index import INDEX_NAME, write_index
from pipelines.preprocess.make_shard import make_shard
from pipelines.preprocess.pipeline import Config, define_pipeline, make_slices, preprocess
from pipelines.preprocess.plan import Plan
from pipelines.runners.runner import parse_options, run_pipeline
from pipelines.sources import open_source
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Manifest
from schemas.pixels import from_uint8, to_uint8
from schemas.sealed import seal, unseal
from schemas.storage.directory import STAGING
from tests.flags import with_devices
from tests.pipelines.conftest import CLASSES, IMAGES
from tests.pipelines.running import contents, plan, run


@pytest.fixture(scope="module")
def made(
    photos: Path, tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Manifest]:
    """A dataset with mirrored encodings, four shards, a last batch that is not full."""
    task = plan(photos, tmp_path_factory.mktemp("made") / "out", vae=str(tiny_vae), flips=True)
    return task, preprocess(task, progress=False)


def test_records_equal_a_direct_computation(
    made: tuple[Plan, Manifest], photos: Path, tiny_vae: Path
) -> None:
    task, manifest = made
    dataset = LatentDataset(Path(task.directory.root))
    source = open_source(str(photos), "train")
    items = {item.key: item for item in source.index()}
    vae = load_vae(str(tiny_vae))
    records = list(dataset.records())
    assert len(records) == len(dataset) == IMAGES
    assert {record.key for record in records} == items.keys()
    for record, mirrored in zip(records, dataset.records("train_flip"), strict=True):
        item = items[record.key]
        assert manifest.classes[record.label] == record.key.split("/")[0]
        assert (mirrored.key, mirrored.label) == (record.key, record.label)
        # ADM's crop of an image with a shorter side under twice 16 is one bicubic resize and the
        # centre.
        picture = Image.fromarray(source.read(item).pixels)
        scale = 16 / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (picture.width - 16) // 2, (picture.height - 16) // 2
        pixels = np.asarray(picture)[None, top : top + 16, left : left + 16]
        for stored, view in ((record, pixels), (mirrored, pixels[:, :, ::-1])):
            mean, logvar = vae.encode(jnp.asarray(from_uint8(view)))
            np.testing.assert_allclose(stored.tensors["mean"], mean[0], rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(stored.tensors["logvar"], logvar[0], rtol=2e-3, atol=2e-4)


def test_order_is_a_permutation_that_mixes_the_classes(made: tuple[Plan, Manifest]) -> None:
    labels = [record.label for record in LatentDataset(Path(made[0].directory.root)).records()]
    assert sorted(labels) == sorted(label for label in range(3) for _ in range(20))
    assert labels != sorted(labels)
    assert len(set(labels[:15])) == 3


def test_statistics_are_those_of_posterior_samples(made: tuple[Plan, Manifest]) -> None:
    task, manifest = made
    records = list(LatentDataset(Path(task.directory.root)).records())
    mean = np.stack([record.tensors["mean"] for record in records]).astype(np.float64)
    noise = np.exp(np.stack([record.tensors["logvar"] for record in records]).astype(np.float64))
    np.testing.assert_allclose(manifest.channels.mean, mean.mean((0, 1, 2)), rtol=1e-12)
    expected = np.sqrt(mean.var((0, 1, 2)) + noise.mean((0, 1, 2)))
    np.testing.assert_allclose(manifest.channels.std, expected, rtol=1e-10)


def test_psnr_is_that_of_decoded_stored_means(
    made: tuple[Plan, Manifest], photos: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    task, manifest = made
    pixels = plan(photos, tmp_path / "pixels", flips=True)  # the same crops, in the same order
    preprocess(pixels, progress=False)
    originals = {
        r.key: r.tensors["image"] for r in LatentDataset(Path(pixels.directory.root)).records()
    }
    vae = load_vae(str(tiny_vae))
    errors = []
    for shard in range(4):  # eight of each shard
        for record in list(
            LatentDataset(Path(task.directory.root)).records(start=15 * shard, stop=15 * shard + 8)
        ):
            decoded = to_uint8(
                np.asarray(vae.decode(jnp.asarray(record.tensors["mean"][None], jnp.float32)))
            )[0]
            errors.append(np.mean((decoded.astype(float) - originals[record.key]) ** 2))
    assert manifest.reconstruction is not None
    assert manifest.reconstruction.records == len(errors) == 32
    expected = 10 * math.log10(255**2 / np.mean(errors))
    assert manifest.reconstruction.psnr_db == pytest.approx(expected, abs=0.01)


def test_tensorflow_datasets_opens_it(made: tuple[Plan, Manifest]) -> None:
    directory = Path(made[0].directory.root)
    builder: Any = tfds.builder_from_directory(directory)
    assert builder.info.features["label"].names == list(CLASSES)
    for split in ("train", "train_flip"):
        examples = builder.as_data_source(split)
        assert len(examples) == IMAGES
        for example, record in zip(examples, LatentDataset(directory).records(split), strict=True):
            assert (example["key"].decode(), example["label"]) == (record.key, record.label)
            for name in ("mean", "logvar"):
                assert example[name].dtype == np.float16
                np.testing.assert_array_equal(example[name], record.tensors[name])


def test_directory_is_clean_and_names_its_command(
    made: tuple[Plan, Manifest], photos: Path, tiny_vae: Path
) -> None:
    task, manifest = made
    shards = [shard.name for shard in manifest.shards]
    assert len(shards) == 8
    assert sorted(contents(Path(task.directory.root))) == sorted(
        [
            *shards,
            "README.md",
            "dataset_info.json",
            "features.json",
            "label.labels.txt",
            "manifest.json",
            "rejects.jsonl",
            "settings.json",
            "shards.jsonl",
        ]
    )
    assert manifest.command == (
        f"flowtrain preprocess {photos} OUT --split train --resolution 16 --crop adm --vae "
        f"{tiny_vae} --vae-dtype float32 --shards 4 --batch-size 8 --seed 0 --flips"
    )
    assert not any(
        str(task.directory.root) in text for text in (manifest.to_json(), manifest.command)
    )


def test_pixels_are_stored_as_they_are(photos: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out", resolution=17)
    manifest = preprocess(task, progress=False)
    assert manifest.layout == Layout.IMAGE
    assert (manifest.vae, manifest.reconstruction) == (None, None)
    images = np.stack([r.tensors["image"] for r in LatentDataset(tmp_path / "out").records()])
    assert images.shape == (IMAGES, 17, 17, 3)
    scaled = from_uint8(images).astype(np.float64)
    np.testing.assert_allclose(manifest.channels.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.channels.std, scaled.std((0, 1, 2)), rtol=1e-10)


class _Bundle(beam.DoFn):
    """Says which bundle an element is in."""

    def start_bundle(self) -> None:
        self._bundle = uuid.uuid4().hex

    def process(self, element: object) -> list[str]:
        return [self._bundle]


def test_work_is_spread_over_bundles(photos: Path, tmp_path: Path) -> None:
    slices = make_slices(plan(photos, tmp_path / "out", shards=12))

    def check(bundles: list[str]) -> None:
        assert len(bundles) == 12
        assert len(set(bundles)) > 1

    _, options = parse_options(["--direct_running_mode=multi_threading", "--direct_num_workers=3"])
    with beam.Pipeline(FnApiRunner(), options) as root:
        assert_that(root | beam.Create(slices) | beam.Reshuffle() | beam.ParDo(_Bundle()), check)


@pytest.mark.parametrize(
    "beam_args",
    [
        ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=3"],
        ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    ],
)
def test_runner_does_not_show_in_the_bytes(
    made: tuple[Plan, Manifest],
    photos: Path,
    tiny_vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beam_args: list[str],
) -> None:
    # Workers with the devices of this process: a number of its own gives XLA another thread pool,
    # which on some processors shows in a last bit.
    monkeypatch.setenv("XLA_FLAGS", with_devices(len(jax.devices())))
    task = plan(photos, tmp_path / "out", vae=str(tiny_vae), flips=True)
    preprocess(task, beam_args, progress=False)
    assert contents(tmp_path / "out") == contents(Path(made[0].directory.root))


def test_neighbours_in_a_batch_do_not_show_in_a_record(
    made: tuple[Plan, Manifest], tiny_vae: Path
) -> None:
    """Padding cannot leak: the encoder gives an image the same bits in any company, in batches of
    one size.
    """
    vae = load_vae(str(tiny_vae))
    rng = np.random.default_rng(0)
    images = from_uint8(rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    alone = np.zeros_like(images) - 1
    alone[:3] = images[:3]
    for ours, theirs in zip(
        vae.encode(jnp.asarray(images)), vae.encode(jnp.asarray(alone)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours)[:3], np.asarray(theirs)[:3])


def test_beam_counts_what_was_done(photos: Path, tmp_path: Path) -> None:
    """Of a run that finds a shard of four done already, with an image that is listed twice and one
    that is bad.
    """
    archive, bad = tmp_path / "in.tar", tmp_path / "bad.png"
    bad.write_text("no image")
    with tarfile.open(archive, "w") as file:
        paths = sorted(photos.rglob("*.*"))
        for path in [*paths, paths[0]]:
            file.add(path, path.relative_to(photos))
        file.add(bad, "bee/bad.png")
    task = plan(f"tar:{archive}", tmp_path / "out")
    directory, settings = task.directory, task.settings
    dataset_build(directory, settings).take()
    write_index(directory, f"{settings.work}/{INDEX_NAME}", task.index)
    slices = make_slices(task)
    done = make_shard(directory, settings, slices[0], PixelEncoder, lambda name, more: None)
    assert isinstance(done, ShardResult)
    config = Config(directory, settings, slices, 0.1, 0.0)
    result = run_pipeline(functools.partial(define_pipeline, config=config))
    counters = {
        entry.key.metric.name: entry.committed for entry in result.metrics().query()["counters"]
    }
    manifest = LatentDataset(tmp_path / "out").manifest
    assert manifest.counts.model_dump() == {
        "source": IMAGES + 2,
        "written": IMAGES,
        "rejected": 1,
        "duplicate": 1,
    }
    assert counters == {
        "read": IMAGES + 1 - done.items,
        "decoded": IMAGES - done.records,
        "encoded": IMAGES - done.records,
        "rejected": 1 - len(done.rejects),
        "bytes": sum(shard.bytes for shard in manifest.shards[1:]),
    }


def test_graph_is_linear(photos: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out")
    root = beam.Pipeline(FnApiRunner())
    define_pipeline(root, Config(task.directory, task.settings, make_slices(task), 0.01, 0.0))
    names = [part.full_label for part in root.transforms_stack[0].parts]
    assert names == ["Slices", "Spread", "Encode", "Merge", "Finish"]
    assert all(len(part.outputs) == 1 for part in root.transforms_stack[0].parts)


def test_finished_dataset_is_left_alone(
    made: tuple[Plan, Manifest], photos: Path, tiny_vae: Path
) -> None:
    before = contents(Path(made[0].directory.root))
    again = plan(photos, Path(made[0].directory.root), vae=str(tiny_vae), flips=True)
    assert again.finished_manifest() == made[1]
    assert contents(Path(made[0].directory.root)) == before


@pytest.mark.parametrize("markers", [True, False])
def test_truncated_and_missing_shards_are_rebuilt(
    photos: Path, tmp_path: Path, markers: bool
) -> None:
    out = tmp_path / "out"
    manifest = preprocess(plan(photos, out), progress=False)
    before = contents(out)
    first, second = (out / manifest.shards[number].name for number in (1, 2))
    untouched = (out / manifest.shards[0].name).stat().st_mtime_ns
    first.write_bytes(first.read_bytes()[:1000])
    second.unlink()
    if not markers:
        (out / "shards.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"00001-of-00004: the shard has 1000 bytes.*delete it and repeat"
    ):
        LatentDataset(out)
    again = plan(photos, out)
    assert again.finished_manifest() is None
    assert preprocess(again, progress=False) == manifest
    assert contents(out) == before
    assert ((out / manifest.shards[0].name).stat().st_mtime_ns == untouched) == markers


def test_damaged_shard_is_rebuilt_as_its_line_says(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = preprocess(plan(photos, out), progress=False)
    before = contents(out)
    times = {shard.name: (out / shard.name).stat().st_mtime_ns for shard in manifest.shards}
    victim = out / manifest.shards[1].name
    damaged = bytearray(victim.read_bytes())
    damaged[3000] ^= 1
    victim.write_bytes(damaged)
    with pytest.raises(
        UserError, match=r"00001-of-00004: .*; delete it and repeat the command in manifest.json"
    ):
        list(LatentDataset(out).records())
    # sizes are all that a repeated command looks at
    assert plan(photos, out).finished_manifest() == manifest
    victim.unlink()
    words = shlex.split(manifest.command)[2:]
    assert run(*(out if word == "OUT" else word for word in words)).exit_code == 0
    assert contents(out) == before
    rebuilt = [name for name, time in times.items() if (out / name).stat().st_mtime_ns != time]
    assert rebuilt == [victim.name]


def test_dataset_is_unfinished_while_it_is_rebuilt(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "in")
    out = tmp_path / "out"
    manifest = preprocess(plan(tmp_path / "in", out), progress=False)
    before = contents(out)
    (out / manifest.shards[0].name).unlink()
    again = plan(tmp_path / "in", out)
    victim = tmp_path / "in" / next(again.index.items()).key
    victim.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="cannot read"):
        preprocess(again, progress=False)
    with pytest.raises(UserError, match="not a finished dataset"):
        LatentDataset(out)
    (tmp_path / "aside").rename(victim)
    preprocess(plan(tmp_path / "in", out), progress=False)
    assert contents(out) == before


def test_only_what_is_missing_is_made_again(photos: Path, tmp_path: Path) -> None:
    """States that a killed run can leave: shard without marker, marker without shard, marker of
    other bytes.
    """
    out = tmp_path / "out"
    expected = contents(preprocess_into(photos, tmp_path / "undisturbed"))
    task = plan(photos, out, max_bad_fraction=0.0)
    task.build.take()
    markers = (tmp_path / "undisturbed" / "shards.jsonl").read_text().splitlines()
    for shard, marker in enumerate(markers):
        task.directory.write(marker_name(task.settings.work, shard), marker + "\n")
    names = [shard.name for shard in LatentDataset(tmp_path / "undisturbed").manifest.shards]
    (out / names[0]).write_bytes(expected[names[0]])  # done
    (out / names[1]).write_bytes(expected[names[2]])  # same size perhaps, other bytes
    (out / names[3]).write_bytes(expected[names[3]])
    Path(task.directory.root, marker_name(task.settings.work, 3)).write_text("{half a mark")
    (out / ".manifest.json.123.tmp").write_text("{")
    task.directory.write(f"{STAGING}/1/leftover", "x")
    kept = (out / names[0]).stat().st_mtime_ns
    preprocess(plan(photos, out), progress=False)
    assert contents(out) == expected
    assert (out / names[0]).stat().st_mtime_ns == kept


def test_results_that_are_not_those_of_the_manifest_are_not_believed(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = preprocess(plan(photos, out), progress=False)
    before = contents(out)
    results = out / "shards.jsonl"
    text = results.read_text()
    place = text.index('"squares":[') + len('"squares":[')
    results.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
    assert results.stat().st_size == len(text.encode())
    (out / manifest.shards[1].name).unlink()
    preprocess(plan(photos, out), progress=False)
    assert contents(out) == before


def test_work_that_other_settings_left_is_not_taken(photos: Path, tmp_path: Path) -> None:
    """`rm -r OUT/*` spares what begins with a dot."""
    out, other = tmp_path / "out", tmp_path / "other"
    begun = plan(photos, out, seed=1)
    begun.build.take()
    write_index(begun.directory, f"{begun.settings.work}/{INDEX_NAME}", begun.index)
    for piece in make_slices(begun)[:2]:
        make_shard(begun.directory, begun.settings, piece, PixelEncoder, lambda name, more: None)
    for path in out.glob("[!.]*"):
        path.unlink()
    preprocess(plan(photos, out), progress=False)
    preprocess(plan(photos, other), progress=False)
    assert contents(out) == contents(other)


def preprocess_into(photos: Path, out: Path) -> Path:
    preprocess(plan(photos, out), progress=False)
    return out


def test_manifest_with_work_left_over_is_cleared_away(photos: Path, tmp_path: Path) -> None:
    out = preprocess_into(photos, tmp_path / "out")
    before = contents(out)
    (out / ".work").mkdir()
    (out / ".work" / "lock").touch()
    preprocess(plan(photos, out), progress=False)
    assert contents(out) == before
    assert not plan(photos, out).cluttered


@pytest.mark.parametrize(
    "left", [".work/lock", ".work/done/00000.json", ".work.gone.1/index.jsonl"]
)
def test_kill_after_the_manifest_leaves_a_dataset_for_any_versions_and_thresholds(
    photos: Path, tmp_path: Path, left: str
) -> None:
    out = preprocess_into(photos, tmp_path / "out")
    settings = json.loads(unseal((out / "settings.json").read_bytes()))
    settings["versions"]["jax"] = "0.0.1"
    (out / "settings.json").write_text(seal(json.dumps(settings, indent=2) + "\n"))
    before = contents(out)
    (out / left).parent.mkdir(parents=True)
    (out / left).write_text("{}")
    arguments = (
        photos,
        out,
        "--resolution",
        16,
        "--vae",
        "none",
        "--shards",
        4,
        "--batch-size",
        8,
        "--json",
    )
    result = run(*arguments, "--max-bad-fraction", 0)
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (0, "was finished already")
    assert contents(out) == before
    assert not list(out.glob(".work*"))


def test_stricter_thresholds_leave_a_dataset_with_a_missing_shard_as_it_is(
    photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in/ant/bad.png").write_text("no image")
    out = tmp_path / "out"
    manifest = preprocess(plan(tmp_path / "in", out, max_bad_fraction=0.1), progress=False)
    whole = contents(out)
    (out / manifest.shards[0].name).unlink()
    before = contents(out)
    with pytest.raises(
        UserError, match=r"1 of 61 images were rejected.*repeat with --max-bad-fraction 0\.017"
    ):
        preprocess(plan(tmp_path / "in", out), progress=False)
    assert {name: data for name, data in contents(out).items() if name != ".work/lock"} == before
    preprocess(plan(tmp_path / "in", out, max_bad_fraction=0.017), progress=False)
    assert contents(out) == whole  # the manifest too: thresholds are not in it


def test_bad_images_are_rejected_and_counted(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for path in sorted(photos.rglob("*.*"))[:30]:
        target = folder / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "ant" / "empty.jpg").touch()
    (folder / "bee").mkdir(exist_ok=True)
    (folder / "bee" / "text.png").write_text("no image")
    whole = (photos / "bee" / "001.jpg").read_bytes()
    (folder / "ant" / "cut.jpg").write_bytes(whole[: len(whole) - 40])
    # some shards hold nothing but a reject
    task = plan(folder, tmp_path / "out", shards=33, max_bad_fraction=0.1)
    manifest = preprocess(task, progress=False)
    assert manifest.counts.model_dump() == {
        "source": 33,
        "written": 30,
        "rejected": 3,
        "duplicate": 0,
    }
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [(r["key"], r["exception"], r["size"]) for r in rejects] == [
        ("ant/cut.jpg", "OSError", len(whole) - 40),
        ("ant/empty.jpg", "ImageError", 0),
        ("bee/text.png", "UnidentifiedImageError", 8),
    ]
    assert sorted(shard.records for shard in manifest.shards) == [0] * 3 + [1] * 30
    builder: Any = tfds.builder_from_directory(tmp_path / "out")
    assert len(builder.as_data_source("train")) == 30


def test_source_that_fails_to_be_read_is_no_bad_image(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number, path in enumerate(sorted(photos.rglob("*.*"))[:20]):
        (folder / "all").mkdir(parents=True, exist_ok=True)
        (folder / "all" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    task = plan(folder, tmp_path / "out")
    victim = list(task.index.items())[7]
    (folder / victim.key).rename(tmp_path / "aside")
    with pytest.raises(
        UserError, match=f"cannot read {victim.key} of .*No such file.*repeat the command"
    ):
        preprocess(task, progress=False)
    done = sorted(path.name for path in (tmp_path / "out/.work").glob("*/done/*"))
    assert len(done) == 3  # the other shards are done and stay
    (tmp_path / "aside").rename(folder / victim.key)
    assert preprocess(plan(folder, tmp_path / "out"), progress=False).counts.written == 20
