from pathlib import Path

from pipelines.index import INDEX_NAME, build_index, read_index
from pipelines.sources import Item
from pipelines.storage import LocalDirectory


def items(count: int) -> list[Item]:
    return [Item(f"class{number % 3}/{number}", number % 3, number, f"{number}\udcff") for number in range(count)]


def test_order_follows_from_keys_and_seed_alone() -> None:
    listed = items(100)
    one, other = build_index(listed, 0), build_index(listed[::-1], 0)
    assert one == other
    assert set(one.items) == set(listed)
    assert [item.key for item in one.items] != sorted(item.key for item in listed)
    assert build_index(listed, 1).items != one.items
    assert build_index(listed, 1).digest == one.digest


def test_order_is_the_same_for_ever() -> None:
    assert [item.size for item in build_index(items(8), 7).items] == [6, 5, 4, 3, 7, 1, 2, 0]


def test_duplicate_keys_are_dropped_and_counted() -> None:
    listed = items(10)
    again = [Item(listed[3].key, 2, 999, "elsewhere"), Item(listed[3].key, 0, 1, "before")]
    index = build_index([*listed, *again], 0)
    assert len(index.items) == 10
    assert index.duplicates == 2
    assert {item.location for item in index.items if item.key == listed[3].key} == {"before"}
    assert index.digest != build_index(listed, 0).digest


def test_digest_sees_keys_labels_and_sizes() -> None:
    digests = {
        build_index([item], 0).digest
        for item in (Item("a", 0, 1, ""), Item("b", 0, 1, ""), Item("a", 1, 1, ""), Item("a", 0, 2, ""))
    }
    assert len(digests) == 4


def test_times_are_a_digest_of_their_own() -> None:
    indexes = [build_index([Item("a", 0, 1, "", time), Item("b", 0, 1, "", 7)], 0) for time in (0, 1)]
    assert indexes[0].digest == indexes[1].digest
    assert indexes[0].times != indexes[1].times


def test_a_worker_reads_its_slice_only(tmp_path: Path) -> None:
    directory = LocalDirectory(str(tmp_path))
    index = build_index(items(50), 0)
    directory.write(INDEX_NAME, index.encode())
    start, stop, end = index.offsets([10, 30, 50])
    assert read_index(directory, start, stop - start) == list(index.items[10:30])
    assert read_index(directory, stop, end - stop) == list(index.items[30:])
    assert end == len(index.encode())
