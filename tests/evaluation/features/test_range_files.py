"""Where files of ranges lie: one place for all that they depend on, and gone when asked."""

from pathlib import Path

import pytest

from evaluation.features import range_files


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    return tmp_path / "my.reference.npz"


def test_every_range_of_every_key_has_files_of_its_own(statistics: Path) -> None:
    places = [
        place(statistics, key, index)
        for place in (range_files.sums_path, range_files.rows_path)
        for key in ("a" * 16, "b" * 16)
        for index in (0, 7, 99_999)
    ]
    assert len(set(places)) == len(places)
    for path in places:
        path.write_bytes(b"x")  # its folder is there
        assert range_files.root(statistics) in path.parents
    sums = sorted(path.name for path in places[:3])
    assert sums == [path.name for path in places[:3]], "in their order by name, too"


def test_statistics_in_one_folder_share_nothing(statistics: Path) -> None:
    other = statistics.with_name("my.npz")
    range_files.sums_path(statistics, "key", 0).write_bytes(b"x")
    range_files.sums_path(other, "key", 0).write_bytes(b"y")
    range_files.discard(other)
    assert range_files.sums_path(statistics, "key", 0).read_bytes() == b"x"
    assert not range_files.root(other).exists()


def test_what_is_of_another_key_goes(statistics: Path) -> None:
    statistics.write_bytes(b"statistics")
    for key in ("now", "before", "long ago"):
        range_files.sums_path(statistics, key, 0).write_bytes(key.encode())
    range_files.keep_only(statistics, "now")
    assert [path.name for path in range_files.root(statistics).iterdir()] == ["now"]
    assert range_files.sums_path(statistics, "now", 0).read_bytes() == b"now"
    range_files.discard(statistics)
    assert sorted(statistics.parent.iterdir()) == [statistics]


def test_where_there_is_nothing_nothing_is_deleted(statistics: Path) -> None:
    range_files.keep_only(statistics, "now")
    range_files.discard(statistics)
    assert list(statistics.parent.iterdir()) == []


def test_the_reason_is_in_the_line(statistics: Path) -> None:
    told = range_files.unwritable(statistics, OSError(28, "No space left on device"))
    assert told == (
        f"{statistics}: cannot be written (No space left on device); mend that and repeat"
    )
    assert "(odd)" in range_files.unwritable(statistics, OSError("odd"))
