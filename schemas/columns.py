"""Many records decoded at once, one array a feature, without Python for each value.

What `encode_record` writes differs between the records of a dataset in the key, the label and the
contents of the tensors only, and features are in the order of their names. So those whose names
sort after "label" lie at fixed distances from the end of a record, and those that sort before "key"
right after its outermost length. The bytes that must precede each value are compared, all of them;
records that are laid out otherwise are parsed one by one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.layout import KEY, LABEL, TensorSpec
from schemas.record import decode_record

Columns = dict[str, NDArray[Any]]

_LENGTHS = 1 << 12  # lengths of records and keys whose headers are remembered
_LONGEST_HEADER = 64


class _OtherLayout(Exception):  # noqa: N818  (no error: the records are parsed in another way)
    """Records that `encode_record` did not write."""


def decode_columns(serialized: Sequence[bytes], specs: Mapping[str, TensorSpec]) -> Columns:
    """Parse n > 0 records.

    Returns:
        One (n, *shape) array for each tensor, in its stored dtype, contiguous and writable, and
        `label`, (n,) int32. Keys are left out. No checksum is looked at: what stores the records
        has them.

    Raises:
        ValueError: as `decode_record`.
    """
    try:
        return _cut(serialized, specs)
    except _OtherLayout:
        return _parse(serialized, specs)


def _parse(serialized: Sequence[bytes], specs: Mapping[str, TensorSpec]) -> Columns:
    records = [decode_record(data, specs) for data in serialized]
    columns = {name: np.stack([record.tensors[name] for record in records]) for name in specs}
    return columns | {LABEL: np.array([record.label for record in records], np.int32)}


def _cut(serialized: Sequence[bytes], specs: Mapping[str, TensorSpec]) -> Columns:
    leading = sorted(name for name in specs if name < KEY)
    trailing = sorted(name for name in specs if name > LABEL)
    if len(leading) + len(trailing) < len(specs):
        raise _OtherLayout

    columns: Columns = {}
    # from the front up to the key
    places = _starts(serialized)
    for name in leading:
        header = _tensor_header(name, specs[name].nbytes)
        columns[name] = _tensors(serialized, places, header, specs[name])
        places = [place + len(header) + specs[name].nbytes for place in places]
    key_begins = places

    # from the back down to the label, which the key lies before
    places = [len(data) for data in serialized]
    for name in reversed(trailing):
        header = _tensor_header(name, specs[name].nbytes)
        places = [place - len(header) - specs[name].nbytes for place in places]
        columns[name] = _tensors(serialized, places, header, specs[name])
    labels, key_ends = _labels(serialized, places)
    _check_keys(serialized, key_begins, key_ends)
    return {name: columns[name] for name in specs} | {LABEL: labels}


def _check_keys(serialized: Sequence[bytes], begins: Sequence[int], ends: Sequence[int]) -> None:
    """Whether nothing but the key's feature lies between the leading and the trailing ones."""
    for data, begin, end in zip(serialized, begins, ends, strict=True):
        if not data.startswith(_key_header(end - begin), begin):
            raise _OtherLayout


def _tensors(
    serialized: Sequence[bytes], places: Sequence[int], header: bytes, spec: TensorSpec
) -> NDArray[Any]:
    """The tensors behind the headers that begin at `places`."""
    views = list(zip(map(memoryview, serialized), places, strict=True))
    start, end = len(header), len(header) + spec.nbytes
    if min(places) < 0:
        raise _OtherLayout
    headers = b"".join([view[place : place + start] for view, place in views])
    if headers != header * len(views):
        raise _OtherLayout
    data = bytearray().join([view[place + start : place + end] for view, place in views])
    if len(data) != len(views) * spec.nbytes:
        raise _OtherLayout
    return np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(-1, *spec.shape)


def _labels(
    serialized: Sequence[bytes], ends: Sequence[int]
) -> tuple[NDArray[np.int32], list[int]]:
    """The labels whose features end at `ends`, and where these features begin."""
    pairs = zip(serialized, ends, strict=True)
    tails = b"".join([data[max(end - _LABEL_TAIL, 0) : end] for data, end in pairs])
    if len(tails) != len(serialized) * _LABEL_TAIL:
        raise _OtherLayout
    tail = np.frombuffer(tails, np.uint8).reshape(-1, _LABEL_TAIL)
    labels, begins = np.full(len(serialized), -1, np.int32), np.array(ends)
    for size, header in _LABEL_HEADERS.items():
        wanted = np.frombuffer(header, np.uint8)
        digits = tail[:, -size:]
        more = [True] * (size - 1) + [False]  # whether another digit follows
        right_header = (tail[:, -size - len(wanted) : -size] == wanted).all(1)
        fits = right_header & ((digits > 127) == more).all(1)
        shifts = np.arange(0, 7 * size, 7, dtype=np.int32)
        value = ((digits & 127).astype(np.int32) << shifts).sum(1, dtype=np.int32)
        labels[fits] = value[fits]
        begins[fits] -= size + len(header)
    if (labels < 0).any():
        raise _OtherLayout
    return labels, begins.tolist()


def _varint(value: int) -> bytes:
    """A base-128 number, lowest digit first; all bytes but the last have their high bit set."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _field(number: int, size: int) -> bytes:
    """Tag and length of a protobuf field of `size` bytes."""
    return bytes([number << 3 | 2]) + _varint(size)


def _header(name: str, kind: int, size: int) -> bytes:
    """What precedes a value in a record: `Features.feature` entry, key, `Feature`, list."""
    value = _field(1, size)
    listed = _field(kind, len(value) + size)
    feature = _field(2, len(listed) + len(value) + size)
    inner = _field(1, len(name)) + name.encode() + feature + listed + value
    return _field(1, len(inner) + size) + inner


def _tensor_header(name: str, size: int) -> bytes:
    return _header(name, 1, size)  # bytes_list


# int64_list, packed; labels below 2 million
_LABEL_HEADERS = {size: _header(LABEL, 3, size) for size in (1, 2, 3)}
_LABEL_TAIL = max(size + len(header) for size, header in _LABEL_HEADERS.items())


def _starts(serialized: Sequence[bytes]) -> list[int]:
    """Where the first features begin."""
    headers = [_outer_header(len(data)) for data in serialized]
    if not all(data.startswith(header) for data, header in zip(serialized, headers, strict=True)):
        raise _OtherLayout
    return [len(header) for header in headers]


@functools.lru_cache(_LENGTHS)
def _outer_header(total: int) -> bytes:
    """Tag and length of `Example.features` in a record of `total` bytes."""
    return _fitting(lambda size: _field(1, size), total)


@functools.lru_cache(_LENGTHS)
def _key_header(total: int) -> bytes:
    """What precedes the key in its feature of `total` bytes."""
    return _fitting(lambda size: _header(KEY, 1, size), total)


def _fitting(header: Callable[[int], bytes], total: int) -> bytes:
    """The header of the content that makes `total` bytes with it."""
    for size in range(max(total - _LONGEST_HEADER, 0), total):
        if len(header(size)) + size == total:
            return header(size)
    raise _OtherLayout
