"""Prepared builders: where they are found, what they tell, and what cannot be read of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from pipelines.sources import open_source
from pipelines.sources.tfds_builder import builder_digest, builder_directory, open_split
from schemas.errors import UserError
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import image_feature, make_builder
from tests.refusals import refused


def refusal(descriptor: str, split: str = "train") -> str:
    return refused(lambda: list(open_source(descriptor, split).index()))


def test_a_split_is_its_shards_features_and_classes(labelled: Path) -> None:
    split = open_split(str(labelled), "train")
    assert (split.image, split.label, split.classes) == ("image", "label", ("cat", "dog", "eel"))
    files = sorted(labelled.glob("*array_record*"))
    assert [name for name, _, _ in split.shards] == [file.name for file in files]
    assert [modified for _, _, modified in split.shards] == [f.stat().st_mtime_ns for f in files]
    assert [records for _, records, _ in split.shards] == [6, 7]


def test_the_digest_is_of_what_describes_the_builder(labelled: Path) -> None:
    before = builder_digest(str(labelled))
    (shard, *_) = sorted(labelled.glob("*array_record*"))
    os.utime(shard, ns=(1, 1))
    assert builder_digest(str(labelled)) == before
    for name in ("dataset_info.json", "features.json"):
        whole = (labelled / name).read_bytes()
        (labelled / name).write_bytes(whole + b" ")
        assert builder_digest(str(labelled)) != before, name
        (labelled / name).write_bytes(whole)
    assert builder_digest(str(labelled)) == before
    (labelled / "features.json").unlink()
    with pytest.raises(UserError, match=r"features\.json cannot be read"):
        builder_digest(str(labelled))


def test_a_directory_goes_before_a_name(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(labelled.parent)
    assert builder_directory(labelled.name) == str(labelled)
    assert builder_directory("s3://bucket/tiny/1.0.0/") == "s3://bucket/tiny/1.0.0"


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


def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, pictures: list[bytes], labelled: Path
) -> None:
    rows = [{"image": data} for data in pictures]
    records = make_builder(tmp_path / "records", {"image": image_feature()}, rows, kind="tfrecord")
    assert "prepared as tfrecord" in refusal(f"tfds:{records}")
    assert "--file_format=array_record" in refusal(f"tfds:{records}")
    assert "no split 'test'; it has train" in refusal(f"tfds:{labelled}", "test")
    text = make_builder(tmp_path / "text", {"text": tfds.features.Text()}, [{"text": "x"}] * 3)
    assert "no image among its features (text)" in refusal(f"tfds:{text}")
    two = {"left": image_feature(), "right": image_feature()}
    both = make_builder(tmp_path / "two", two, [{"left": pictures[0], "right": pictures[1]}] * 2)
    assert "several images (left, right), none of them named image" in refusal(f"tfds:{both}")
    classes = {name: tfds.features.ClassLabel(num_classes=2) for name in ("fine", "coarse")}
    several = make_builder(
        tmp_path / "classes",
        {"image": image_feature(), **classes},
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


def test_descriptions_that_no_builder_has_are_one_line(labelled: Path) -> None:
    info, features = labelled / "dataset_info.json", labelled / "features.json"
    whole = {path: path.read_text() for path in (info, features)}
    length, classes = '"shardLengths": ["6", "7"]', '"numClasses": "3"'
    label, image = "class_label_feature.ClassLabel", "image_feature.Image"
    deep = "[" * 100_000 + "]" * 100_000
    for path, old, new in (
        *((info, length, f'"shardLengths": {value}') for value in ('["-6", "7"]', '["6", 1e15]')),
        (info, length, f'"shardLengths": {deep}'),
        *((features, classes, f'"numClasses": "{count}"') for count in (-3, 10**15)),
        *((features, label, name) for name in ("Nothing", "tensor_feature.Tensor", "sys.exit")),
        *((features, image, name) for name in ("text_feature.Text", "image_feature.__name__")),
        (features, "tensorflow_datasets.core.features.image_feature.Image", "os.path.join"),
        (features, "tensorflow_datasets.core.features.image_feature.Image", "builtins.dict"),
        (features, "tensorflow_datasets.core.features.features_dict.FeaturesDict", "sys.exit"),
    ):
        assert old in whole[path], old
        path.write_text(whole[path].replace(old, new))
        (labelled / "label.labels.txt").unlink(missing_ok=True)
        assert str(labelled) in refusal(f"tfds:{labelled}"), new
        path.write_text(whole[path])
