"""The two JSON files and the label list that let TensorFlow Datasets open a directory of shards.

`tfds.folder_dataset.write_metadata` may import TensorFlow, so the files are written here, in the
format that `FeaturesDict.save_config` and `DatasetInfo.write_to_directory` produce; a test opens
them with TFDS.
"""

import json
from collections.abc import Mapping, Sequence

from schemas.layout import KEY, LABEL, TensorSpec

_FEATURES = "tensorflow_datasets.core.features"
DATASET_NAME = "latents"
FEATURES_NAME = "features.json"
INFO_NAME = "dataset_info.json"
LABELS_NAME = "label.labels.txt"
VERSION = "1.0.0"


def shard_name(split: str, index: int, count: int) -> str:
    """TFDS's default file name: latents-train.array_record-00000-of-00004."""
    return f"{DATASET_NAME}-{split}.array_record-{index:05d}-of-{count:05d}"


def features_json(specs: Mapping[str, TensorSpec], num_classes: int) -> str:
    """Content of `features.json`."""
    features: dict[str, object] = {
        name: {
            "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
            "tensor": {
                "dtype": spec.dtype,
                "encoding": "bytes",
                "shape": {"dimensions": [str(size) for size in spec.shape]},
            },
        }
        for name, spec in specs.items()
    }
    features[KEY] = {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
    features[LABEL] = {
        "classLabel": {"numClasses": str(num_classes)},
        "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
    }
    content = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def dataset_info_json(splits: Mapping[str, Sequence[tuple[int, int]]], description: str) -> str:
    """Content of `dataset_info.json`; `splits` gives (records, bytes) of each shard in order."""
    content = {
        "description": description,
        "fileFormat": "array_record",
        "moduleName": "schemas.tfds_metadata",
        "name": DATASET_NAME,
        "releaseNotes": {VERSION: "Written by flowtrain."},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(size for _, size in shards)),
                "shardLengths": [str(records) for records, _ in shards],
            }
            for split, shards in splits.items()
        ],
        "version": VERSION,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def labels_txt(classes: Sequence[str]) -> str:
    """Content of `label.labels.txt`: one class name a line."""
    return "".join(f"{name}\n" for name in classes)
