"""Prepared TFDS builders, Parquet files and zips, written without TensorFlow from images that are
given.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

COUNT = 13  # pictures of the builders that tests share


def make_builder(
    root: Path,
    features: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    name: str = "tiny",
    split: str = "train",
    kind: str = "array_record",
    shards: int = 2,
) -> Path:
    """A builder at `root/name/1.0.0`; returns that directory."""
    directory = root / name / "1.0.0"
    directory.mkdir(parents=True)
    described = tfds.features.FeaturesDict(features)
    described.save_config(str(directory))
    bounds = np.linspace(0, len(rows), shards + 1).astype(int)
    lengths = []
    for shard in range(shards):
        path = directory / f"{name}-{split}.{kind}-{shard:05d}-of-{shards:05d}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows[bounds[shard] : bounds[shard + 1]]:
            writer.write(described.serialize_example(described.encode_example(row)))
        writer.close()
        lengths.append(str(bounds[shard + 1] - bounds[shard]))
    info = {
        "fileFormat": kind,
        "moduleName": "tests",
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": lengths,
            }
        ],
        "version": "1.0.0",
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def image_feature() -> tfds.features.Image:
    """JPEG images of any size."""
    return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")


def make_labelled_builder(root: Path, pictures: Sequence[bytes]) -> Path:
    """As imagenet2012: image, label, file_name; three classes in turn."""
    features = {
        "image": image_feature(),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
        "file_name": tfds.features.Text(),
    }
    rows = [
        {"image": data, "label": row % 3, "file_name": f"{row}.JPEG"}
        for row, data in enumerate(pictures)
    ]
    return make_builder(root, features, rows)


def make_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None] | None = None,
    names: Sequence[str] | None = None,
    rows: int = 4,
) -> Path:
    """A file as `datasets.Dataset.to_parquet` writes it, with `rows` in a row group."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(images)]
    columns: dict[str, Any] = {"image": pa.array(values, struct)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = (
            {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64"}
        )
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


SAVED_CLASSES = ["cat", "dog", "eel"]
SAVED_LABELS = [0, 1, 2, 1, 0, 0, 1, 2, 2, None]


def make_saved(folder: Path, images: Sequence[bytes | None], files: int = 2) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` leaves it (a `DatasetDict` has one a split), with
    batches of 3 rows, and at most as many images as there are `SAVED_LABELS`.
    """
    folder.mkdir(parents=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(images)]
    label = {"_type": "ClassLabel", "names": SAVED_CLASSES}
    features = {"image": {"_type": "Image"}, "label": label}
    labels = pa.array(SAVED_LABELS[: len(images)], pa.int64())
    whole = pa.table({"image": pa.array(rows, struct), "label": labels}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    size = -(-len(images) // files)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        with pa.ipc.new_stream(str(folder / name), whole.schema) as writer:
            writer.write_table(whole.slice(number * size, size), max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def make_zip(path: Path, contents: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A zip with these members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path
