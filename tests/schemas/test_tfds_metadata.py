"""The hand-written metadata opens in TensorFlow Datasets and equals what TFDS itself would
write.
"""

import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from schemas import tfds_metadata
from schemas.layout import Layout, layout_tensors
from schemas.record import encode_record

SPECS = layout_tensors(Layout.MOMENTS, (2, 2, 4))


def test_features_json_equals_what_tfds_writes(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            name: tfds.features.Tensor(
                shape=spec.shape, dtype=np.dtype(spec.dtype), encoding="bytes"
            )
            for name, spec in SPECS.items()
        }
        | {"key": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    )
    features.save_config(tmp_path)
    assert json.loads(tfds_metadata.features_json(SPECS, 2)) == json.loads(
        (tmp_path / "features.json").read_text()
    )
    assert tfds_metadata.labels_txt(["cat", "dog"]) == (tmp_path / "label.labels.txt").read_text()


def test_tfds_opens_two_shards(tmp_path):
    rng = np.random.default_rng(0)
    tensors = [
        {name: rng.normal(size=(2, 2, 4)).astype(np.float16) for name in SPECS} for _ in range(5)
    ]
    sizes = []
    for shard, rows in enumerate([range(3), range(3, 5)]):
        path = tmp_path / tfds_metadata.shard_name("train", shard, 2)
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            writer.write(encode_record(f"key{row}", row % 2, tensors[row], SPECS))
        writer.close()
        sizes.append((len(rows), path.stat().st_size))
    (tmp_path / "features.json").write_text(tfds_metadata.features_json(SPECS, 2))
    (tmp_path / "dataset_info.json").write_text(
        tfds_metadata.dataset_info_json({"train": sizes}, "a test")
    )
    (tmp_path / "label.labels.txt").write_text(tfds_metadata.labels_txt(["cat", "dog"]))

    builder: Any = tfds.builder_from_directory(tmp_path)
    source = builder.as_data_source("train")
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert len(source) == builder.info.splits["train"].num_examples == 5
    for row, example in enumerate(source):
        assert example["label"] == row % 2
        assert example["key"] in (f"key{row}", f"key{row}".encode())
        np.testing.assert_array_equal(example["logvar"], tensors[row]["logvar"])
