"""Records in columns are those that are parsed one by one, however they are laid out."""

import numpy as np
import pytest

from schemas import columns
from schemas.columns import decode_columns
from schemas.layout import Layout, TensorSpec, layout_tensors
from schemas.record import _Example, decode_record, encode_record

LABELS = (0, 1, 127, 128, 999, 16383, 16384, 2**21 - 1)
SPECS = {
    "moments": layout_tensors(Layout.MOMENTS, (4, 4, 4)),
    "latent": layout_tensors(Layout.LATENT, (2, 2, 4)),
    "image": layout_tensors(Layout.IMAGE, (64, 64, 3)),
    "one byte": layout_tensors(Layout.IMAGE, (1, 1, 1)),
    "both sides": {
        name: TensorSpec(shape=(3,), dtype="float32") for name in ("zebra", "ant", "bee", "yak")
    },
}


def tensors(specs: dict[str, TensorSpec], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype) for name, spec in specs.items()
    }


def records(specs: dict[str, TensorSpec]) -> list[bytes]:
    """Keys of 0 to 300 bytes, so that every length in a record has one byte here and two there."""
    keys = ["", "k", "é" * 50, "k" * 115, "k" * 130, "k" * 300, "label", "mean"]
    return [
        encode_record(key, label, tensors(specs, label), specs)
        for key, label in zip(keys, LABELS, strict=True)
    ]


def assert_parsed(
    found: columns.Columns, serialized: list[bytes], specs: dict[str, TensorSpec]
) -> None:
    parsed = [decode_record(data, specs) for data in serialized]
    assert list(found) == [*specs, "label"]
    for name in specs:
        np.testing.assert_array_equal(
            found[name], np.stack([record.tensors[name] for record in parsed])
        )
        assert found[name].dtype == specs[name].dtype
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable
    assert found["label"].tolist() == [record.label for record in parsed]
    assert found["label"].dtype == np.int32


@pytest.mark.parametrize("name", SPECS)
def test_records_that_we_wrote_are_cut_not_parsed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = SPECS[name]
    serialized = records(specs)
    with monkeypatch.context() as patch:
        patch.setattr(columns, "_parse", None)
        found = decode_columns(serialized, specs)
    assert_parsed(found, serialized, specs)


@pytest.mark.parametrize("label", [2**21, 2**31 - 1])
def test_labels_too_large_to_be_cut_out_are_parsed(label: int) -> None:
    specs = SPECS["latent"]
    serialized = [*records(specs), encode_record("k", label, tensors(specs, 0), specs)]
    assert_parsed(decode_columns(serialized, specs), serialized, specs)


def test_tensors_between_key_and_label_are_parsed() -> None:
    specs = {
        "kind": TensorSpec(shape=(2,), dtype="uint8"),
        "mean": TensorSpec(shape=(2,), dtype="float16"),
    }
    serialized = records(specs)
    assert_parsed(decode_columns(serialized, specs), serialized, specs)


def reordered(data: bytes, order: list[str]) -> bytes:
    """The same record, its features in another order, as another writer may leave them."""
    example = _Example.FromString(data)
    parts = b""
    for name in order:
        alone = _Example()
        alone.features.feature[name].CopyFrom(example.features.feature[name])
        parts += alone.features.SerializeToString()
    size, header = len(parts), b"\n"
    while size > 127:
        header += bytes([size & 127 | 128])
        size >>= 7
    return header + bytes([size]) + parts


def test_records_of_another_writer_are_parsed() -> None:
    specs = SPECS["moments"]
    serialized = records(specs)
    for order in (["mean", "logvar", "key", "label"], ["label", "key", "logvar", "mean"]):
        mixed = [*serialized[:3], reordered(serialized[3], order)]
        assert decode_record(mixed[3], specs).key == decode_record(serialized[3], specs).key
        assert_parsed(decode_columns(mixed, specs), mixed, specs)


def test_what_is_no_record_raises_as_when_it_is_parsed() -> None:
    specs = SPECS["moments"]
    good = records(specs)
    example = _Example.FromString(good[0])
    # two labels: packed, two bytes as one of 128 to 16383
    example.features.feature["label"].int64_list.value.append(3)
    two = example.SerializeToString(deterministic=True)
    example = _Example.FromString(good[0])
    example.features.feature["mean"].bytes_list.value[0] += b"x"
    long = example.SerializeToString(deterministic=True)
    renamed = [
        good[0].replace(b"logvar", b"logvas"),
        good[0].replace(b"\x03key", b"\x03kez"),
        b"\x12" + good[0][1:],
    ]
    for bad in (b"", b"x", good[0][:-1], good[0][1:], two, long, *renamed):
        with pytest.raises(ValueError, match=r"feature|not a tf\.train\.Example"):
            decode_columns([good[0], bad], specs)
