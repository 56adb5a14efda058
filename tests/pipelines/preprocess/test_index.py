import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from pipelines.preprocess import index as module
from pipelines.preprocess.index import (
    INDEX_NAME,
    Index,
    build_index,
    index_is,
    read_index,
    write_index,
)
from pipelines.sources import Item
from schemas.errors import UserError
from schemas.storage.directory import Directory


def items(count: int) -> list[Item]:
    return [
        Item(f"class{number % 3}/{number}", number % 3, number, f"{number}\udcff")
        for number in range(count)
    ]


def facts(index: Index) -> tuple[object, ...]:
    return list(index.items()), index.records, index.duplicates, index.digest, index.state


def test_order_follows_from_keys_and_seed_alone() -> None:
    listed = items(100)
    one, other = build_index(listed, 0), build_index(listed[::-1], 0)
    assert facts(one) == facts(other)
    assert set(one.items()) == set(listed)
    assert [item.key for item in one.items()] != sorted(item.key for item in listed)
    assert list(build_index(listed, 1).items()) != list(one.items())
    assert build_index(listed, 1).digest == one.digest


def test_order_is_the_same_for_ever() -> None:
    assert [item.size for item in build_index(items(8), 7).items()] == [6, 5, 4, 3, 7, 1, 2, 0]


def test_groups_stay_together_in_an_order_of_chance() -> None:
    listed = [
        Item(f"{number:03d}", 0, number, "", group=f"group{number // 20}") for number in range(100)
    ]
    sizes = [item.size for item in build_index(listed, 0).items()]
    assert sorted(sizes) == list(range(100))
    groups = [(group, list(members)) for group, members in groupby(sizes, lambda size: size // 20)]
    assert [group for group, _ in groups] != sorted(range(5))
    assert sorted(group for group, _ in groups) == sorted(range(5))
    assert all(members != sorted(members) for _, members in groups)


def test_images_that_are_listed_again_are_dropped_and_counted() -> None:
    listed = items(10)
    again = [Item(listed[3].key, 2, 999, "elsewhere"), Item(listed[3].key, 0, 1, "before")]
    asked: list[tuple[Item, Item]] = []

    def same(one: Item, other: Item) -> bool:
        asked.append((one, other))
        return True

    index = build_index([*listed, *again], 0, same=same)
    first = again[1]
    assert asked == [(first, listed[3]), (first, again[0])]
    assert index.records == len(list(index.items())) == 10
    assert index.duplicates == 2
    assert {item.location for item in index.items() if item.key == listed[3].key} == {"before"}
    assert index.digest != build_index(listed, 0).digest


def test_other_images_of_one_key_are_refused() -> None:
    listed = items(10)
    again = Item(listed[3].key, 0, 999, "elsewhere")
    with pytest.raises(UserError, match=f"two images are called {again.key} and are not the same"):
        build_index([*listed, again], 0, same=lambda one, other: False)
    with pytest.raises(UserError, match="two images"):
        build_index([*listed, again], 0)
    assert build_index([*listed, *listed], 0).duplicates == 10


def test_digest_sees_keys_labels_sizes_and_the_fingerprint() -> None:
    one = Item("a", 0, 1, "")
    changed = (one, Item("b", 0, 1, ""), Item("a", 1, 1, ""), Item("a", 0, 2, ""))
    digests = {build_index([item], 0).digest for item in changed} | {
        build_index([one], 0, "other bytes").digest
    }
    assert len(digests) == 5


def test_times_and_places_are_a_digest_of_their_own() -> None:
    listed = [Item("a", 0, 1, "0:512", 7), Item("b", 0, 1, "0:1536", 7)]
    later = [replace(listed[0], modified=8), listed[1]]
    exchanged = [replace(listed[0], location="0:1536"), replace(listed[1], location="0:512")]
    indexes = [build_index(items, 0) for items in (listed, later, exchanged)]
    assert len({index.digest for index in indexes}) == 1
    assert len({index.state for index in indexes}) == 3


def test_an_index_file_is_this_index_or_is_not(tmp_path: Path) -> None:
    directory, index = Directory(str(tmp_path)), build_index(items(20), 0)
    write_index(directory, INDEX_NAME, index)
    whole = (tmp_path / INDEX_NAME).read_bytes()
    assert index_is(directory, INDEX_NAME, index)
    for other in (whole + b"\n", whole[:-1], b"", whole.replace(b"class1", b"class2", 1)):
        (tmp_path / INDEX_NAME).write_bytes(other)
        assert not index_is(directory, INDEX_NAME, index)


def test_a_worker_reads_its_slice_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory(str(tmp_path))
    index = build_index(items(50), 0)
    name = f".work/{INDEX_NAME}"
    write_index(directory, name, index)
    whole = list(index.items())
    first, start, stop, end = index.offsets([0, 10, 30, 50])
    assert first == 0
    assert list(read_index(directory, name, start, stop - start)) == whole[10:30]
    assert list(read_index(directory, name, stop, end - stop)) == whole[30:]
    monkeypatch.setattr(module, "_PIECE", 7)  # a line comes in several pieces
    assert list(read_index(directory, name, start, stop - start)) == whole[10:30]
    assert end == len(directory.read(name))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["index.jsonl"]


def test_memory_does_not_grow_with_the_source() -> None:
    def many(count: int) -> Iterator[Item]:
        return (Item(f"{number:040d}", 0, number, "x" * 100) for number in range(count))

    def peak(count: int) -> int:  # of Python's own objects; SQLite's cache has a fixed size
        tracemalloc.start()
        index = build_index(many(count), 0)
        index.offsets(range(0, count, 1000))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(8_000) < 2 * peak(1_000) + 50_000
