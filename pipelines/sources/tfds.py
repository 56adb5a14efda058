"""`tfds:NAME`: a prepared TensorFlow Datasets builder, read without TensorFlow.

Only builders in the array_record format have random access. Records are read by position; what a record holds, its
label included, is known when it is read.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import files
from pipelines.images import ImageError, decode_image
from pipelines.sources.base import UNLABELLED, Item, Picture, Source
from pipelines.sources.listed import FLAT_CLASS
from schemas.errors import UserError

INFO, FEATURES = "dataset_info.json", "features.json"
FORMAT = "array_record"
_DEPTHS = ("uint8", "uint16")  # other images are stored as numbers in disguise


@dataclass(frozen=True)
class _Opened:
    """A split of a builder: its records, and the features of them that count."""

    records: Sequence[bytes]
    image: str
    label: str | None
    classes: tuple[str, ...]


class TfdsSource(Source):
    """A split of a builder. Labels come with the records; without a class label in them there is one class.

    Args:
        name: `imagenet2012`, `celeb_a_hq/256`, `NAME@DATA_DIR`, or the directory of a builder (which holds
            `dataset_info.json`). Without DATA_DIR, TFDS looks where it always does, TFDS_DATA_DIR included.
        split: of the builder.

    Raises:
        UserError: no such builder, or it is not prepared.
    """

    def __init__(self, name: str, split: str):
        self._directory = _builder_directory(name)
        self.descriptor = f"tfds:{self._directory}"
        self.split = split
        self.fingerprint = _fingerprint(self._directory)
        self._lock = threading.Lock()
        self._cached: _Opened | None = None

    def __reduce__(self) -> tuple[type["TfdsSource"], tuple[str, str]]:
        return type(self), (self._directory, self.split)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._open().classes

    def index(self) -> Iterator[Item]:
        label = 0 if self._open().label is None else UNLABELLED
        for row in range(len(self._open().records)):
            yield Item(f"{self.split}/{row:07d}", label, 0, str(row))

    def read(self, item: Item) -> Picture:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        opened = self._open()
        try:
            record = opened.records[int(item.location)]
            parsed = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
        except (ValueError, RuntimeError, IndexError, DecodeError) as error:  # whatever array_record says of damage
            raise ImageError("its record cannot be read: the shard is damaged", type(error).__name__) from error
        example = parsed.features.feature
        images = example[opened.image].bytes_list.value
        labels = [0] if opened.label is None else example[opened.label].int64_list.value
        if len(images) != 1 or len(labels) != 1:
            raise ImageError("its record holds no image" if len(images) != 1 else "its record holds no label")
        if not 0 <= labels[0] < len(opened.classes):
            raise ImageError(f"has no label: {labels[0]} is none of {len(opened.classes)} classes")
        return Picture(decode_image(images[0]), labels[0])

    def _open(self) -> _Opened:
        with self._lock:
            if self._cached is None:
                self._cached = _open(self._directory, self.split)
            return self._cached


def _builder_directory(name: str) -> str:
    """Where the builder lies: absolute, with its configuration and version."""
    dataset, _, data_dir = name.partition("@")
    for path in (dataset, data_dir):
        if files.is_url(path):
            raise UserError(f"tfds:{name}: builders are read from the local disk; copy it there first")
    path = Path(dataset).expanduser()
    if (path / INFO).is_file() and not data_dir:
        return str(path.absolute())
    if path.is_absolute() or dataset.startswith(("~", ".")):
        raise UserError(f"tfds:{name}: no {INFO} in this directory; give the one of a builder, as NAME/CONFIG/VERSION")
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        builder = builder_from_files(dataset, **({"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}))
    except (DatasetNotFoundError, ValueError, OSError) as error:
        where = f"in {data_dir}" if data_dir else "where TFDS looks (TFDS_DATA_DIR)"
        raise UserError(
            f"tfds:{name}: no prepared dataset {dataset} {where}; prepare it with "
            f"`tfds build {dataset} --file_format={FORMAT}`, or say tfds:NAME@DATA_DIR"
        ) from error
    return str(Path(builder.data_dir).absolute())


def _fingerprint(directory: str) -> str:
    """SHA-256 (hex) of the two files that describe the builder: splits, shards, their records and bytes, features."""
    digest = hashlib.sha256()
    for name in (INFO, FEATURES):
        try:
            digest.update(Path(directory, name).read_bytes())
        except OSError as error:
            raise UserError(
                f"tfds:{directory}: {name} cannot be read ({error.strerror}); prepare the builder again"
            ) from error
    return digest.hexdigest()


def _open(directory: str, split: str) -> _Opened:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        info = builder.info
        formats = {kind.value for kind in info.available_file_formats()}
    except Exception as error:  # TFDS raises whatever its parsers stumble on
        raise UserError(
            f"tfds:{directory}: TensorFlow Datasets cannot open it ({_brief(error)}); prepare it again"
        ) from error
    if FORMAT not in formats:
        raise UserError(
            f"tfds:{directory}: prepared as {' and '.join(sorted(formats))}, which needs TensorFlow to be read; "
            f"prepare it with `tfds build {info.name} --file_format={FORMAT}`"
        )
    if split not in info.splits:
        raise UserError(f"tfds:{directory}: no split {split!r}; it has {' and '.join(info.splits) or 'none'}")
    features: dict[str, Any] = (
        dict(sorted(info.features.items())) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    )
    image = _image_feature(features, directory)
    label = _label_feature(features, directory)
    missing = [file for file in info.splits[split].filenames if not Path(directory, file).is_file()]
    if missing:
        raise UserError(f"tfds:{directory}: {missing[0]} is not there ({len(missing)} such); prepare the builder again")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split, deserialize_method=raw, file_format=FORMAT)  # pyright: ignore[reportCallIssue]
    classes = (FLAT_CLASS,) if label is None else tuple(features[label].names)
    return _Opened(records, image, label, classes)


def _image_feature(features: dict[str, Any], directory: str) -> str:
    """The feature named image, or the only one that is an image."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if type(feature) is tfds.features.Image]
    if "image" not in images and len(images) != 1:
        found = f"several images ({', '.join(images)}), none of them named image" if images else "no image"
        raise UserError(f"tfds:{directory}: {found} among its features ({', '.join(features)}); it cannot be encoded")
    name = "image" if "image" in images else images[0]
    depth = np.dtype(features[name].np_dtype).name
    if depth not in _DEPTHS:
        raise UserError(f"tfds:{directory}: its images hold {depth} numbers; only {' and '.join(_DEPTHS)} are pixels")
    return name


def _label_feature(features: dict[str, Any], directory: str) -> str | None:
    """The class label named label, or the only one; None where there is none."""
    import tensorflow_datasets as tfds

    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if "label" not in labels and len(labels) > 1:
        raise UserError(f"tfds:{directory}: several class labels ({', '.join(labels)}), none of them named label")
    return "label" if "label" in labels else next(iter(labels), None)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
