"""The same images in every kind of source: the same latents, and where keys agree, the same
bytes.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from pipelines.dataset.finished import LatentDataset
from tests.pipelines.running import run
from tests.pipelines.sources.miniature import IMAGES, SYNSETS, Miniature, make_miniature
from tests.pipelines.sources.prepared import make_builder, make_parquet, make_zip


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("ilsvrc"))


@pytest.fixture(scope="module")
def folder(miniature: Miniature, tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset made of the folder."""
    return encode(str(miniature.folder), tmp_path_factory.mktemp("folder") / "out", tiny_vae)


def encode(source: str, out: Path, vae: Path) -> Path:
    done = run(
        source, out, "--resolution", 16, "--vae", vae, "--shards", 3, "--batch-size", 8,
        "--flips", "--min-psnr", 0,
        "--vae-dtype", "float32", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["records"], facts["rejected"], facts["classes"]) == (SYNSETS * IMAGES, 0, SYNSETS)
    return out


def shards(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.array_record*")}


def tensors(directory: Path, split: str = "train") -> dict[str, tuple[str, NDArray[np.float16]]]:
    """By key: the name of the class, and mean and log-variance."""
    dataset = LatentDataset(directory)
    return {
        record.key: (
            dataset.manifest.classes[record.label],
            np.stack([record.tensors[n] for n in ("mean", "logvar")]),
        )
        for record in dataset.records(split)
    }


def images(miniature: Miniature) -> list[tuple[str, bytes]]:
    """(key in the folder, bytes of the file), shuffled."""
    paths = [path for path in sorted(miniature.folder.rglob("*")) if path.is_file()]
    order = np.random.default_rng(1).permutation(len(paths))
    return [(str(paths[i].relative_to(miniature.folder)), paths[i].read_bytes()) for i in order]


def test_tar_of_tars_gives_the_bytes_of_the_folder(
    miniature: Miniature, folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    names = f"{miniature.train},{miniature.devkit}"
    assert shards(encode(f"tar:{names}", tmp_path / "out", tiny_vae)) == shards(folder)


def test_plain_tar_and_zip_give_the_bytes_of_the_folder(
    miniature: Miniature, folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(miniature.folder, "imagenet/train")
    make_zip(tmp_path / "in.zip", dict(images(miniature)))
    for kind in ("tar", "zip"):
        assert shards(
            encode(f"{kind}:{tmp_path / f'in.{kind}'}", tmp_path / kind, tiny_vae)
        ) == shards(folder)


def test_tfds_and_parquet_give_the_latents_of_the_folder(
    miniature: Miniature, folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    names = sorted(miniature.synsets)
    files = images(miniature)
    labels = [names.index(key.split("/")[0]) for key, _ in files]
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=names),
        "file_name": tfds.features.Text(),
    }
    rows = [
        {"image": d, "label": n, "file_name": k} for (k, d), n in zip(files, labels, strict=True)
    ]
    builder = make_builder(tmp_path / "data", features, rows, name="imagenet2012")
    half = len(files) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        path = tmp_path / f"hub/data/train-{number:05d}-of-00002.parquet"
        make_parquet(path, [data for _, data in files[part]], labels[part], names)
    sources = {
        f"tfds:{builder}": [f"train/{row:07d}" for row in range(len(files))],
        f"parquet:{tmp_path / 'hub'}": [
            f"data/train-{row // half:05d}-of-00002.parquet/{row % half:07d}"
            for row in range(len(files))
        ],
    }
    for number, (source, keys) in enumerate(sources.items()):
        out = encode(source, tmp_path / str(number), tiny_vae)
        for split in ("train", "train_flip"):
            expected, found = tensors(folder, split), tensors(out, split)
            assert found.keys() == set(keys)
            for (name, _), key in zip(files, keys, strict=True):
                assert found[key][0] == expected[name][0] == name.split("/")[0]
                # Other neighbours in the batch, which may show in the last bit of the float32
                # behind it.
                np.testing.assert_allclose(found[key][1], expected[name][1], rtol=2**-10, atol=1e-6)


def test_real_images_from_a_folder_and_a_tar(shared_data: Path, tmp_path: Path) -> None:
    """200 photographs of many sizes, grey ones among them."""
    photographs = shared_data / "imagenet_sample"
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(photographs, "train")
    made = []
    for source in (photographs, f"tar:{tmp_path / 'in.tar'}"):
        out = tmp_path / str(len(made))
        done = run(source, out, "--resolution", 64, "--vae", "none", "--shards", 2, "--json")
        assert json.loads(done.stdout)["rejected"] == 0
        made.append(shards(out))
    assert made[0] == made[1]
