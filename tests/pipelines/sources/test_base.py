"""What every kind of source promises: see the docstrings of `Item`, `Picture` and `Source`."""

import pickle
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources import UNLABELLED, Item, Source, open_source
from tests.pipelines.sources.miniature import add, jpeg
from tests.pipelines.sources.prepared import make_labelled_builder, make_parquet, make_zip

RNG = np.random.default_rng(0)
PICTURES = {f"{name}/{number}.jpg": jpeg(RNG) for name in ("cat", "dog") for number in range(4)}
DATA = list(PICTURES.values())


def folder(root: Path) -> str:
    for name, data in PICTURES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def tar(root: Path) -> str:
    with tarfile.open(root / "x.tar", "w") as archive:
        for name, data in PICTURES.items():
            add(archive, name, data)
    return f"tar:{root / 'x.tar'}"


def packed(root: Path) -> str:
    return f"zip:{make_zip(root / 'x.zip', PICTURES)}"


def parquet(root: Path) -> str:
    path = make_parquet(root / "x.parquet", DATA, [n // 4 for n in range(8)], ["cat", "dog"])
    return f"parquet:{path}"


def builder(root: Path) -> str:
    return f"tfds:{make_labelled_builder(root, DATA)}"


def digits(root: Path) -> str:
    return "embedded:digits"


@pytest.fixture(params=[folder, tar, packed, parquet, builder, digits])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    make: Callable[[Path], str] = request.param
    split = "test" if make is digits else "train"
    return open_source(make(tmp_path), split)


def some(source: Source) -> list[Item]:
    """Up to nine of its items, by key."""
    items = sorted(source.index(), key=lambda item: item.key)
    return items[:: -(-len(items) // 9)]


def test_items_have_keys_and_labels(source: Source) -> None:
    items = list(source.index())
    assert sorted(items, key=str) == sorted(source.index(), key=str), "listed again the same"
    keys = [item.key for item in items]
    assert len(set(keys)) == len(keys)
    assert all(key.encode() for key in keys)
    labels = {item.label for item in items}
    assert labels == {UNLABELLED} or labels == set(range(len(source.classes)))
    grouped = [item.group for item in items]
    assert all(grouped) or not any(grouped)


def test_a_copy_and_a_source_opened_again_are_the_same(source: Source) -> None:
    expected = some(source)
    again = open_source(source.descriptor, source.split)
    for other in (pickle.loads(pickle.dumps(source)), again):
        assert other.descriptor == source.descriptor
        assert other.classes == source.classes
        assert other.fingerprint == source.fingerprint
        assert some(other) == expected
        # a worker reads items that another process has listed
        pixels = other.read(expected[-1]).pixels
        np.testing.assert_array_equal(pixels, source.read(expected[-1]).pixels)


def test_several_threads_read_what_one_does(source: Source) -> None:
    items = some(source) * 4
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(source.read, items))
    for item, picture in zip(items, read, strict=True):
        alone = source.read(item)
        np.testing.assert_array_equal(picture.pixels, alone.pixels)
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape[2:] == (3,)
        assert picture.label == alone.label
        assert item.label in (picture.label, UNLABELLED)
        assert 0 <= picture.label < len(source.classes)
