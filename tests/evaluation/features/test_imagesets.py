"""Image sets: every layout decodes to the same pixels, in order; facts identify and do not
locate.
"""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from evaluation.features.imagesets import batch_images, dataset_images, source_images
from flowtrain.state.checkpoint import TrainedModel
from schemas import manifest
from schemas.errors import UserError
from tests.evaluation.conftest import World
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import make_builder


def test_ranges_of_a_dataset_are_slices_of_the_whole(world: World) -> None:
    images = dataset_images(world.dataset)
    whole = images.read(0, images.size)
    part = images.read(8, 23)  # across two cuts between shards
    np.testing.assert_array_equal(part.images, whole.images[8:23])
    np.testing.assert_array_equal(part.labels, whole.labels[8:23])
    assert whole.labels.tolist() == [i % 3 for i in range(30)]
    assert whole.images.dtype == np.uint8
    assert len(np.unique(whole.images.reshape(30, -1), axis=0)) == 30


def test_a_manifest_is_read_once_until_it_is_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.dataset, copy)
    read = []
    parse = manifest.parse_manifest
    monkeypatch.setattr(manifest, "parse_manifest", lambda *text: read.append(1) or parse(*text))
    images = dataset_images(copy)
    for start in range(0, images.size, 5):
        images.read(start, start + 5)
    assert len(read) == 1
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text())
    images.read(0, 5)
    assert len(read) == 2
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="manifest"):
        images.read(0, 5)


def test_samples_are_decoded_from_the_models_scale(
    world: World, trained: TrainedModel, tmp_path: Path
) -> None:
    from evaluation.draw.generate import draw, generate
    from evaluation.draw.setting import Setting
    from pipelines.encoders.decode import decode_samples
    from schemas.sampler import SamplerSettings

    setting = Setting(5, SamplerSettings("euler", 2, 1.0))
    generate(trained, setting, tmp_path / "set", batch_size=8)
    (drawn,) = draw(trained, setting, 0, 5, 8)
    expected = decode_samples(drawn.latents, trained.run.normalization, world.vae, 8)
    np.testing.assert_array_equal(dataset_images(tmp_path / "set").read(0, 5).images, expected)


def test_a_source_is_cropped_and_bad_images_are_counted(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 8), (100 * i, 7, 9)).save(tmp_path / name / "a.png")
    (tmp_path / "dog" / "b.png").write_bytes(b"")
    images = source_images(str(tmp_path), "train", 8, "adm")
    assert images.classes == ("cat", "dog")
    batch = images.read(0, 3)
    assert batch.rejected == 1
    assert batch.labels.tolist() == [0, 1]
    assert batch.images.shape == (2, 8, 8, 3)
    assert batch.images[1, 0, 0].tolist() == [100, 7, 9]
    assert images.read(2, 3).images.shape == (0, 8, 8, 3)
    assert pickle.loads(pickle.dumps(images)) == images


def test_labels_may_come_with_the_records_and_the_digest_is_of_the_builder(tmp_path: Path) -> None:
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
    }
    digests = set()
    for count in (5, 6):
        rows = [{"image": png((9 * row, 7, 9), (8, 8)), "label": row % 3} for row in range(count)]
        images = source_images(
            f"tfds:{make_builder(tmp_path / str(count), features, rows)}", "train", 8, "adm"
        )
        digests.add(images.digest)
        batch = images.read(1, 4)
        assert batch.labels.tolist() == [1, 2, 0]
        assert batch.images[:, 0, 0, 0].tolist() == [9, 18, 27]
    assert len(digests) == 2


def test_some_images_of_a_folder_are_evenly_spaced_by_name(tmp_path: Path) -> None:
    """The first twenty of fifty would be those of the first classes."""
    for number in np.random.default_rng(0).permutation(50).tolist():
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    images = source_images(str(tmp_path), "train", 8, "adm", num=20)
    assert images.read(0, 20).images[:, 0, 0, 0].tolist() == [i * 50 // 20 for i in range(20)]
    assert images.read(7, 9).images[:, 0, 0, 0].tolist() == [17, 20]


def test_facts_do_not_say_where_a_dataset_lies(world: World) -> None:
    facts = dataset_images(world.dataset).facts()
    assert str(world.dataset) not in str(facts)
    assert facts["digest"] == world.manifest.digest()
    assert dataset_images(world.dataset, num=7).facts() != facts


def test_a_dataset_that_changes_meanwhile_is_noticed(world: World, tmp_path: Path) -> None:
    import shutil

    from schemas.manifest import write_manifest

    copy = Path(shutil.copytree(world.dataset, tmp_path / "copy"))
    images = dataset_images(copy)
    write_manifest(copy, world.manifest.model_copy(update={"seed": 9}))
    with pytest.raises(UserError, match="changed while it was read"):
        images.read(0, 1)


def test_batches_are_checked(tmp_path: Path) -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "good.npz", pixels, np.arange(3))
    assert batch_images(tmp_path / "good.npz").resolution == 8
    np.savez(tmp_path / "flat.npz", pixels[..., 0])
    np.savez(tmp_path / "long.npz", pixels[:, :4])
    np.savez(tmp_path / "named.npz", images=pixels)
    np.savez(tmp_path / "object.npz", np.array([{}], dtype=object))
    with open(tmp_path / "lone.npz", "wb") as file:
        np.save(file, pixels)
    for name in ("flat", "long"):
        with pytest.raises(UserError, match="samples must be uint8"):
            batch_images(tmp_path / f"{name}.npz")
    np.savez_compressed(tmp_path / "damaged.npz", np.arange(12 * 8 * 8, dtype=np.uint8))
    data = bytearray((tmp_path / "damaged.npz").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "damaged.npz").write_bytes(data)
    told = dict.fromkeys(("object", "lone", "damaged"), r"not a readable \.npz of ADM's")
    for name, line in {"named": r"an \.npz without arr_0", **told}.items():
        with pytest.raises(UserError, match=line):
            batch_images(tmp_path / f"{name}.npz")
