"""A prepared TensorFlow Datasets builder, local or on an object store, and what it tells without a
record read.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources.listed import FLAT_CLASS
from schemas.errors import UserError
from schemas.storage import paths
from schemas.storage.temporary import temporary_folder

INFO, FEATURES = "dataset_info.json", "features.json"
FORMAT = "array_record"
_LABELS = ".labels.txt"
_DEPTHS = ("uint8", "uint16")  # other images are stored as numbers in disguise


@dataclass(frozen=True)
class Split:
    """A split of a builder: its shards as (file name, records, time of change), and the features
    that count.
    """

    shards: tuple[tuple[str, int, int], ...]
    image: str
    label: str | None
    classes: tuple[str, ...]


def builder_directory(name: str) -> str:
    """Where a builder lies, absolute, with its configuration and version.

    Args:
        name: a directory or URL that holds `dataset_info.json`, or NAME, or NAME@DATA_DIR.

    Raises:
        UserError: no such builder. An object store is asked later.
    """
    dataset, _, data_dir = name.partition("@")
    if paths.is_url(data_dir):
        raise UserError(
            f"tfds:{name}: give the directory of the builder, tfds:{data_dir}/NAME/CONFIG/VERSION"
        )
    if paths.is_url(dataset):
        return paths.absolute(name)
    path = Path(dataset).expanduser()
    if (path / INFO).is_file() and not data_dir:
        return str(path.absolute())
    if path.is_absolute() or dataset.startswith(("~", ".")):
        raise UserError(
            f"tfds:{name}: no {INFO} in this directory; give the one of a builder, as "
            "NAME/CONFIG/VERSION"
        )
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        builder = builder_from_files(
            dataset, **({"data_dir": str(Path(data_dir).expanduser())} if data_dir else {})
        )
    except (DatasetNotFoundError, ValueError, OSError) as error:
        where = f"in {data_dir}" if data_dir else "where TFDS looks (TFDS_DATA_DIR)"
        raise UserError(
            f"tfds:{name}: no prepared dataset {dataset} {where}; prepare it with "
            f"`tfds build {dataset} --file_format={FORMAT}`, or say tfds:NAME@DATA_DIR"
        ) from error
    return str(Path(builder.data_dir).absolute())


def builder_digest(directory: str) -> str:
    """SHA-256 (hex) of the two files that describe the builder: splits, shards, their records and
    bytes, features.

    Raises:
        UserError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for name in (INFO, FEATURES):
        digest.update(_read(directory, name))
    return digest.hexdigest()


def open_split(directory: str, split: str) -> Split:
    """Look into a builder; its shards are looked for, but not read.

    Raises:
        UserError: it cannot be opened, its format has no random access, no such split, shards that
            are missing, no image, or more than one that could be meant.
    """
    import tensorflow_datasets as tfds

    names = _list(directory)
    for needed in (INFO, FEATURES):
        if needed not in names:
            raise UserError(
                f"tfds:{directory}: no {needed} in it; give the directory of a prepared builder"
            )
    with ExitStack() as stack:
        local = directory
        # TFDS would want TensorFlow to read there; what describes a builder is small
        if paths.is_url(directory):
            local = str(stack.enter_context(temporary_folder()))
            for name in names:
                if name in (INFO, FEATURES) or name.endswith(_LABELS):
                    Path(local, name).write_bytes(_read(directory, name))
        try:
            info = tfds.builder_from_directory(local).info
            formats = {kind.value for kind in info.available_file_formats()}
        except Exception as error:  # TFDS raises whatever its parsers stumble on
            brief = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"tfds:{directory}: TensorFlow Datasets cannot open it ({brief}); prepare it again"
            ) from error
        if FORMAT not in formats:
            raise UserError(
                f"tfds:{directory}: prepared as {' and '.join(sorted(formats))}, which needs "
                "TensorFlow to be read; "
                f"prepare it with `tfds build {info.name} --file_format={FORMAT}`"
            )
        info.set_file_format(FORMAT, override=True, override_if_initialized=True)
        if split not in info.splits:
            raise UserError(
                f"tfds:{directory}: no split {split!r}; it has "
                f"{' and '.join(info.splits) or 'none'}"
            )
        parts = info.splits[split].file_instructions
        counts = [(Path(part.filename).name, part.examples_in_shard) for part in parts]
        features: dict[str, Any] = (
            dict(sorted(info.features.items()))
            if isinstance(info.features, tfds.features.FeaturesDict)
            else {}
        )
    missing = [name for name, _ in counts if name not in names]
    if missing:
        raise UserError(
            f"tfds:{directory}: {missing[0]} is not there ({len(missing)} such); prepare the "
            "builder again"
        )
    image, label = _image_feature(features, directory), _label_feature(features, directory)
    classes = (FLAT_CLASS,) if label is None else tuple(features[label].names)
    shards = tuple((name, records, names[name]) for name, records in counts)
    return Split(shards, image, label, classes)


def _list(directory: str) -> dict[str, int]:
    """Names of the files of a builder, and when they last changed."""
    try:
        return {
            entry.name: entry.modified
            for entry in paths.entries(directory)
            if "/" not in entry.name
        }
    except OSError as error:
        raise UserError(
            f"tfds:{directory}: cannot be listed ({error.strerror or error})"
        ) from error


def _read(directory: str, name: str) -> bytes:
    try:
        return paths.read(paths.join(directory, name))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"tfds:{directory}: {name} cannot be read ({reason}); prepare the builder again"
        ) from error


def _image_feature(features: dict[str, Any], directory: str) -> str:
    """The feature named image, or the only one that is an image."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if type(feature) is tfds.features.Image]
    if "image" not in images and len(images) != 1:
        found = (
            f"several images ({', '.join(images)}), none of them named image"
            if images
            else "no image"
        )
        raise UserError(
            f"tfds:{directory}: {found} among its features ({', '.join(features)}); it cannot be "
            "encoded"
        )
    name = "image" if "image" in images else images[0]
    depth = np.dtype(features[name].np_dtype).name
    if depth not in _DEPTHS:
        raise UserError(
            f"tfds:{directory}: its images hold {depth} numbers; only {' and '.join(_DEPTHS)} are "
            "pixels"
        )
    return name


def _label_feature(features: dict[str, Any], directory: str) -> str | None:
    """The class label named label, or the only one; None where there is none."""
    import tensorflow_datasets as tfds

    labels = [
        name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)
    ]
    if "label" not in labels and len(labels) > 1:
        raise UserError(
            f"tfds:{directory}: several class labels ({', '.join(labels)}), none of them named "
            "label"
        )
    return "label" if "label" in labels else next(iter(labels), None)
