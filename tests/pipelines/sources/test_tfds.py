import gc
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipelines.images import ImageError, decode_image
from pipelines.preprocess.index import build_index
from pipelines.sources import UNLABELLED, open_source
from pipelines.sources.tfds import SHARDS_KEPT
from tests.pipelines.sources.prepared import COUNT, image_feature, make_builder


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


def test_a_copy_of_the_source_opens_the_builder_again(labelled: Path) -> None:
    source = open_source(f"tfds:{labelled}", "train")
    item = list(source.index())[5]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(item).pixels, source.read(item).pixels)
    assert len(pickle.dumps(source)) < 500


def test_configuration_without_labels_is_one_class(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {"image": image_feature(), "image/filename": tfds.features.Text()}  # as celeb_a_hq
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
    paths = [make_builder(tmp_path / f"{n}", {"image": image_feature()}, rows[:n]) for n in (5, 6)]
    prints = [open_source(f"tfds:{path}", "train").fingerprint for path in paths]
    assert len(set(prints)) == 2
    assert all(len(one) == 64 for one in prints)


def test_shards_that_were_prepared_anew_are_noticed(labelled: Path) -> None:
    before = build_index(open_source(f"tfds:{labelled}", "train").index(), 0).state
    (shard, *_) = sorted(labelled.glob("*array_record*"))
    os.utime(shard, ns=(1, 1))
    assert build_index(open_source(f"tfds:{labelled}", "train").index(), 0).state != before


def test_unlabelled_record_is_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {"image": image_feature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
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
    path = make_builder(tmp_path, {"image": image_feature()}, rows, shards=COUNT)
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
