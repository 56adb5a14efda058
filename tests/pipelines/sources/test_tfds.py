import gc
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipelines.images import ImageError, decode_image
from pipelines.preprocess.index import build_index
from pipelines.sources import UNLABELLED, open_source
from pipelines.sources.tfds import SHARDS_KEPT
from schemas.errors import UserError
from tests.pipelines.sources.miniature import jpeg, png
from tests.pipelines.sources.prepared import make_builder

COUNT = 13


def image(**options: Any) -> tfds.features.Image:
    return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg", **options)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [jpeg(rng) for _ in range(COUNT)]


@pytest.fixture
def labelled(tmp_path: Path, pictures: list[bytes]) -> Path:
    """As imagenet2012: image, label, file_name."""
    features = {
        "image": image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
        "file_name": tfds.features.Text(),
    }
    rows = [
        {"image": data, "label": row % 3, "file_name": f"{row}.JPEG"}
        for row, data in enumerate(pictures)
    ]
    return make_builder(tmp_path / "data", features, rows)


def test_rows_are_items_and_records_know_their_labels(
    labelled: Path, pictures: list[bytes]
) -> None:
    source = open_source(f"tfds:{labelled}", "train")
    assert source.classes == ("cat", "dog", "eel")
    items = list(source.index())
    assert [(item.key, item.label) for item in items] == [
        (f"train/{n:07d}", UNLABELLED) for n in range(COUNT)
    ]
    assert [item.group[-5:] for item in items] == ["00002"] * COUNT
    assert len({item.group for item in items}) == 2
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(source.read, items))
    for row, picture in enumerate(read):
        assert picture.label == row % 3
        np.testing.assert_array_equal(picture.pixels, decode_image(pictures[row]))


def test_without_tensorflow(labelled: Path) -> None:
    code = """
import sys
from pipelines.sources import open_source
source = open_source(sys.argv[1], "train")
print(source.read(next(source.index())).pixels.shape, "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", code, f"tfds:{labelled}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(24, 30, 3) False\n"


def test_found_by_name_in_a_data_dir_or_where_tfds_looks(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = labelled.parent.parent
    by_name = open_source(f"tfds:tiny@{data_dir}", "train")
    assert by_name.descriptor == f"tfds:{labelled}"
    assert by_name.fingerprint == open_source(f"tfds:{labelled}", "train").fingerprint
    code = "import sys; from pipelines.sources import open_source; "
    code += 'print(open_source("tfds:tiny", "train").descriptor)'
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"tfds:{labelled}\n"


def test_a_copy_of_the_source_opens_the_builder_again(labelled: Path) -> None:
    source = open_source(f"tfds:{labelled}", "train")
    item = list(source.index())[5]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(item).pixels, source.read(item).pixels)
    assert len(pickle.dumps(source)) < 500


def test_configuration_without_labels_is_one_class(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {"image": image(), "image/filename": tfds.features.Text()}  # as celeb_a_hq
    rows = [{"image": data, "image/filename": "x"} for data in pictures]
    make_builder(tmp_path, features, rows, name="faces")
    (tmp_path / "faces/256").mkdir()
    shutil.move(tmp_path / "faces/1.0.0", tmp_path / "faces/256/1.0.0")
    source = open_source(f"tfds:faces/256@{tmp_path}", "train")
    assert source.classes == ("all",)
    assert {item.label for item in source.index()} == {0}
    assert source.read(next(source.index())).label == 0


def test_fingerprint_tells_builders_apart(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = [{"image": data} for data in pictures]
    paths = [make_builder(tmp_path / f"{n}", {"image": image()}, rows[:n]) for n in (5, 6)]
    prints = [open_source(f"tfds:{path}", "train").fingerprint for path in paths]
    assert len(set(prints)) == 2
    assert all(len(one) == 64 for one in prints)


def test_shards_that_were_prepared_anew_are_noticed(labelled: Path) -> None:
    before = build_index(open_source(f"tfds:{labelled}", "train").index(), 0).state
    (shard, *_) = sorted(labelled.glob("*array_record*"))
    os.utime(shard, ns=(1, 1))
    assert build_index(open_source(f"tfds:{labelled}", "train").index(), 0).state != before


def test_unlabelled_record_is_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {"image": image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    rows = [{"image": data, "label": label} for data, label in zip(pictures, (1, -1), strict=False)]
    source = open_source(f"tfds:{make_builder(tmp_path, features, rows)}", "train")
    first, second = source.index()
    assert source.read(first).label == 1
    with pytest.raises(ImageError, match="has no label: -1"):
        source.read(second)


def test_damaged_record_is_rejected(labelled: Path, pictures: list[bytes]) -> None:
    (shard, _) = sorted(labelled.glob("*array_record*"))
    data = bytearray(shard.read_bytes())
    data[data.index(pictures[2][-100:])] ^= 255
    shard.write_bytes(data)
    source = open_source(f"tfds:{labelled}", "train")
    failed = []
    for item in source.index():
        try:
            source.read(item)
        except ImageError as error:
            failed.append((item.key, error.reason))
    assert failed == [("train/0000002", "its record cannot be read: the shard is damaged")]


def test_shard_that_is_not_whole_is_not_a_bad_image(labelled: Path) -> None:
    (shard, _) = sorted(labelled.glob("*array_record*"))
    source = open_source(f"tfds:{labelled}", "train")
    items = list(source.index())
    whole = shard.read_bytes()
    for data in (b"", whole[: len(whole) // 2], whole[:-100]):
        shard.write_bytes(data)
        with pytest.raises(OSError, match="is damaged: it does not hold its 6 records"):
            source.read(items[0])
    assert source.read(items[-1]).pixels.shape == (24, 30, 3)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_few_files_are_open(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = [{"image": data} for data in pictures]
    path = make_builder(tmp_path, {"image": image()}, rows, shards=COUNT)
    source = open_source(f"tfds:{path}", "train")
    for item in source.index():
        source.read(item)
    gc.collect()
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert (
        0
        < sum(name.startswith(str(path)) and "array_record" in name for name in links)
        <= SHARDS_KEPT
    ), links


def refusal(descriptor: str, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        list(open_source(descriptor, split).index())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, pictures: list[bytes], labelled: Path
) -> None:
    rows = [{"image": data} for data in pictures]
    records = make_builder(tmp_path / "records", {"image": image()}, rows, kind="tfrecord")
    assert "prepared as tfrecord" in refusal(f"tfds:{records}")
    assert "--file_format=array_record" in refusal(f"tfds:{records}")
    assert "no split 'test'; it has train" in refusal(f"tfds:{labelled}", "test")
    text = make_builder(tmp_path / "text", {"text": tfds.features.Text()}, [{"text": "x"}] * 3)
    assert "no image among its features (text)" in refusal(f"tfds:{text}")
    two = {"left": image(), "right": image()}
    both = make_builder(tmp_path / "two", two, [{"left": pictures[0], "right": pictures[1]}] * 2)
    assert "several images (left, right), none of them named image" in refusal(f"tfds:{both}")
    classes = {name: tfds.features.ClassLabel(num_classes=2) for name in ("fine", "coarse")}
    several = make_builder(
        tmp_path / "classes",
        {"image": image(), **classes},
        [{"image": pictures[0], "fine": 0, "coarse": 1}] * 2,
    )
    assert "several class labels (" in refusal(f"tfds:{several}")
    assert "no prepared dataset imagenet2012 in" in refusal(f"tfds:imagenet2012@{tmp_path}")
    assert "tfds build imagenet2012 --file_format=array_record" in refusal(
        f"tfds:imagenet2012@{tmp_path}"
    )
    assert "no prepared dataset no_such_thing" in refusal(f"tfds:no_such_thing@{tmp_path}")
    assert "no dataset_info.json in this directory" in refusal(f"tfds:{tmp_path}")
    assert "give the directory of the builder" in refusal("tfds:imagenet2012@gs://bucket/tfds")
    (labelled / "features.json").unlink()
    assert "no features.json in it" in refusal(f"tfds:{labelled}")


def test_missing_and_broken_parts_are_told(labelled: Path) -> None:
    next(labelled.glob("*00001-of-00002")).unlink()
    assert "tiny-train.array_record-00001-of-00002 is not there (1 such)" in refusal(
        f"tfds:{labelled}"
    )
    (labelled / "dataset_info.json").write_text("{")
    assert "cannot open it" in refusal(f"tfds:{labelled}")


def test_images_that_are_numbers_in_disguise_are_refused(tmp_path: Path) -> None:
    path = make_builder(
        tmp_path, {"image": tfds.features.Image(shape=(2, 2, 1))}, [{"image": png()}] * 2
    )
    assert len(list(open_source(f"tfds:{path}", "train").index())) == 2
    features = path / "features.json"
    features.write_text(features.read_text().replace('"dtype": "uint8"', '"dtype": "float32"'))
    assert "its images hold float32 numbers" in refusal(f"tfds:{path}")
