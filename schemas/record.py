"""One record on disk: a `tf.train.Example` with bytes features that TensorFlow Datasets can parse.

Tensors are stored as their raw little-endian bytes (TFDS `Tensor(..., encoding="bytes")`), the
label as one int64 (`ClassLabel`), the key as UTF-8 (`Text`). The protobuf classes are those that
tensorflow-datasets ships; TensorFlow itself is not imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow_datasets.proto import tf_example_pb2

from schemas.layout import KEY, LABEL, TensorSpec

# Generated code: the class exists only at run time.
_Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Record:
    """One decoded record. `tensors` are read-only views into the serialized bytes."""

    key: str
    label: int
    tensors: Mapping[str, NDArray[Any]]


def encode_record(
    key: str, label: int, tensors: Mapping[str, NDArray[Any]], specs: Mapping[str, TensorSpec]
) -> bytes:
    """Serialize one record; the same input always gives the same bytes.

    Raises:
        ValueError: a tensor is missing, extra, or its shape or dtype differs from its spec, or it
            is not finite (float16 overflow included): such a record would poison a training run
            much later.
    """
    if tensors.keys() != specs.keys():
        raise ValueError(
            f"{key}: tensors {sorted(tensors)} do not match the layout {sorted(specs)}"
        )
    example = _Example()
    feature = example.features.feature
    for name, spec in specs.items():
        array = tensors[name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"{key}: {name} is {array.dtype}{array.shape}, not {spec.dtype}{spec.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{key}: {name} is not finite in {spec.dtype}")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        feature[name].bytes_list.value.append(little.tobytes())
    feature[LABEL].int64_list.value.append(label)
    feature[KEY].bytes_list.value.append(key.encode())
    return example.SerializeToString(deterministic=True)


def decode_record(serialized: bytes, specs: Mapping[str, TensorSpec]) -> Record:
    """Parse one record.

    Raises:
        ValueError: the bytes are no Example, or a feature is missing or has the wrong size.
    """
    example = _Example()
    try:
        example.ParseFromString(serialized)
    except Exception as error:  # protobuf's DecodeError; its import path moves between releases
        raise ValueError(f"not a tf.train.Example: {error}") from None
    feature = example.features.feature
    tensors: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        values = feature[name].bytes_list.value
        if len(values) != 1 or len(values[0]) != spec.nbytes:
            raise ValueError(f"feature {name!r} is missing or is not {spec.dtype}{spec.shape}")
        tensors[name] = np.frombuffer(values[0], np.dtype(spec.dtype).newbyteorder("<")).reshape(
            spec.shape
        )
    keys, labels = feature[KEY].bytes_list.value, feature[LABEL].int64_list.value
    if len(keys) != 1 or len(labels) != 1:
        raise ValueError("features 'key' and 'label' must hold one value each")
    return Record(keys[0].decode(), labels[0], tensors)
