"""A prepared TensorFlow Datasets builder, and what it tells without a record read."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources.listed import FLAT_CLASS, MOST_NUMBERED
from schemas.errors import UserError, reason_of
from schemas.storage import paths
from schemas.storage.temporary import temporary_folder
from schemas.storage.url import is_url
from schemas.storage.user_cache import expanded

INFO, FEATURES = "dataset_info.json", "features.json"
FORMAT = "array_record"
MOST_RECORDS = 100_000_000  # of a shard
_LABELS = ".labels.txt"
_DEPTHS = ("uint8", "uint16")  # other images are stored as numbers in disguise


@dataclass(frozen=True)
class Split:
    """A split: shards as (file name, records, time of change), and the features that are used."""

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
    if is_url(data_dir):
        raise UserError(
            f"tfds:{name}: give the directory of the builder, tfds:{data_dir}/NAME/CONFIG/VERSION"
        )
    if is_url(dataset):
        return paths.absolute(name)
    path = expanded(dataset)
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
        options = {"data_dir": str(expanded(data_dir))} if data_dir else {}
        builder = builder_from_files(dataset, **options)
    except (DatasetNotFoundError, ValueError, OSError) as error:
        where = f"in {data_dir}" if data_dir else "where TFDS looks (TFDS_DATA_DIR)"
        raise UserError(
            f"tfds:{name}: no prepared dataset {dataset} {where}; prepare it with "
            f"`tfds build {dataset} --file_format={FORMAT}`, or say tfds:NAME@DATA_DIR"
        ) from error
    return str(Path(builder.data_dir).absolute())


def builder_digest(directory: str) -> str:
    """SHA-256 (hex) of the two files that describe the builder's splits, shards and features.

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
    files = _list(directory)
    for needed in (INFO, FEATURES):
        if needed not in files:
            raise UserError(
                f"tfds:{directory}: no {needed} in it; give the directory of a prepared builder"
            )
    with _local_description(directory, files) as local:
        info = _read_info(directory, local)
        _choose_format(info, directory)
        if split not in info.splits:
            raise UserError(
                f"tfds:{directory}: no split {split!r}; it has "
                f"{' and '.join(info.splits) or 'none'}"
            )
        with _told(directory):
            parts = info.splits[split].file_instructions
            counts = [(Path(part.filename).name, part.examples_in_shard) for part in parts]
            lengths = info.splits[split].shard_lengths
            features = _features(info)
    _check_lengths(directory, lengths)
    missing = [name for name, _ in counts if name not in files]
    if missing:
        raise UserError(
            f"tfds:{directory}: {missing[0]} is not there ({len(missing)} such); prepare the "
            "builder again"
        )
    with _told(directory):
        image = _image_feature(features, directory)
        label = _label_feature(features, directory)
        classes = (FLAT_CLASS,) if label is None else _classes(features[label], directory)
    shards = tuple((name, records, files[name]) for name, records in counts)
    return Split(shards, image, label, classes)


@contextmanager
def _local_description(directory: str, files: Mapping[str, int]) -> Iterator[str]:
    """A local directory with the files that describe a builder, for as long as the context lasts.

    TFDS would want TensorFlow to read on an object store; what describes a builder is small.
    """
    if not is_url(directory):
        yield directory
        return
    with temporary_folder() as local:
        for name in files:
            if name in (INFO, FEATURES) or name.endswith(_LABELS):
                (local / name).write_bytes(_read(directory, name))
        yield str(local)


def _read_info(directory: str, local: str) -> Any:
    """The `tfds.core.DatasetInfo` of the builder in `directory`, described in `local`."""
    import tensorflow_datasets as tfds

    with _told(directory):
        info = tfds.builder_from_directory(local).info
        info.available_file_formats()  # fails on a format that TFDS does not know
    return info


@contextmanager
def _told(directory: str) -> Iterator[None]:
    """Turn whatever TFDS's parsers stumble on into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        brief = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"tfds:{directory}: TensorFlow Datasets cannot open it ({brief}); prepare it again"
        ) from error


def _check_lengths(directory: str, lengths: Sequence[int]) -> None:
    wrong = next((length for length in lengths if not 0 <= length <= MOST_RECORDS), None)
    if wrong is not None:
        raise UserError(
            f"tfds:{directory}: a shard of {wrong} records, which none has; prepare it again"
        )


def _choose_format(info: Any, directory: str) -> None:
    """Have the shards of the one format with random access listed."""
    formats = {kind.value for kind in info.available_file_formats()}
    if FORMAT not in formats:
        raise UserError(
            f"tfds:{directory}: prepared as {' and '.join(sorted(formats))}, which needs "
            "TensorFlow to be read; "
            f"prepare it with `tfds build {info.name} --file_format={FORMAT}`"
        )
    info.set_file_format(FORMAT, override=True, override_if_initialized=True)


def _features(info: Any) -> dict[str, Any]:
    """The features of a record by name, in their order; none where a record is a single value."""
    import tensorflow_datasets as tfds

    if not isinstance(info.features, tfds.features.FeaturesDict):
        return {}
    return dict(sorted(info.features.items()))


def _list(directory: str) -> dict[str, int]:
    """Names of the files of a builder, and when they last changed."""
    try:
        return {
            entry.name: entry.modified
            for entry in paths.entries(directory)
            if "/" not in entry.name
        }
    except OSError as error:
        raise UserError(f"tfds:{directory}: cannot be listed ({reason_of(error)})") from error


def _read(directory: str, name: str) -> bytes:
    try:
        return paths.read(paths.join(directory, name))
    except OSError as error:
        reason = reason_of(error)
        raise UserError(
            f"tfds:{directory}: {name} cannot be read ({reason}); prepare the builder again"
        ) from error


def _image_feature(features: dict[str, Any], directory: str) -> str:
    """The feature named image, or the only one that is an image."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if type(feature) is tfds.features.Image]
    if "image" not in images and len(images) != 1:
        found = "no image"
        if images:
            found = f"several images ({', '.join(images)}), none of them named image"
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


def _classes(feature: Any, directory: str) -> tuple[str, ...]:
    """Names of the classes of a label; TFDS makes those that only have numbers."""
    count = feature.num_classes
    if count is None or not 1 <= count <= MOST_NUMBERED:
        raise UserError(
            f"tfds:{directory}: a label of {count} classes; there are 1 to {MOST_NUMBERED}"
        )
    return tuple(feature.names)


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
