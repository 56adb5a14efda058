"""What Parquet files tell without an image read: footer, columns, labels, files of a split."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelines.sources.parquet_files import (
    Columns,
    find_columns,
    footer,
    of_split,
    open_parquet,
    row_groups,
)
from schemas.errors import UserError
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import make_parquet

IMAGES = [png((number, 0, 0)) for number in range(10)]


def write(path: Path, **columns: pa.Array) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_the_footer_is_what_pyarrow_reads(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "x.parquet", IMAGES)
    data = path.read_bytes()
    size, content = footer(str(path))
    assert size == len(data)
    assert len(content) == parquet.read_metadata(path).serialized_size
    assert data.endswith(content + len(content).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("left", [0, 5, 8, 100, -1])
def test_a_cut_file_is_told(tmp_path: Path, left: int) -> None:
    path = make_parquet(tmp_path / "x.parquet", IMAGES)
    path.write_bytes(path.read_bytes()[:left])

    def opened(name: str) -> None:
        with open_parquet(name):
            pass

    for look in (footer, opened):
        with pytest.raises(UserError) as caught:
            look(str(path))
        assert str(caught.value).startswith(f"{path}: not a whole Parquet file")
        assert "\n" not in str(caught.value)


def test_columns_by_name_by_kind_or_not_at_all(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "x.parquet", IMAGES, [n % 2 for n in range(10)], ["cat", "dog"])
    assert find_columns(str(path)) == Columns(str(path), "image", "label", ("cat", "dog"))
    bytes_, numbers = pa.array([b"x"], pa.large_binary()), pa.array([1])
    only = write(tmp_path / "only.parquet", picture=bytes_, number=numbers)
    assert find_columns(only)[1:] == ("picture", None, None), "a number alone is no label"
    named = write(tmp_path / "named.parquet", other=bytes_, image=bytes_, label=numbers)
    assert find_columns(named)[1:] == ("image", "label", None)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": pa.array(["x"])}, "no column of images"),
        ({"a": pa.array([b"x"]), "b": pa.array([b"x"])}, "more than one column of images"),
        ({"image": pa.array([b"x"]), "label": pa.array([0.5])}, "the column label holds double"),
    ],
)
def test_columns_that_cannot_be_meant(
    tmp_path: Path, columns: dict[str, pa.Array], told: str
) -> None:
    path = write(tmp_path / "x.parquet", **columns)
    with pytest.raises(UserError, match=told) as caught:
        find_columns(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_row_groups_number_the_rows_on(tmp_path: Path) -> None:
    labels = [0, 1, None, 1, 0, 0, 1, 1, 1, 0]
    path = str(make_parquet(tmp_path / "x.parquet", IMAGES, labels, ["cat", "dog"], rows=4))
    groups = list(row_groups(path, find_columns(path)))
    assert [(group.number, group.first) for group in groups] == [(0, 0), (1, 4), (2, 8)]
    assert [label for group in groups for label in group.labels] == labels
    plain = str(make_parquet(tmp_path / "y.parquet", IMAGES, rows=6))
    assert [group.labels for group in row_groups(plain, find_columns(plain))] == [[0] * 6, [0] * 4]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["dog", "cat"], 'class 0 is "dog", and "cat" in'),
        (["cat", "dog", "eel"], 'class 2 is "eel", and none in'),
        (["cat"], 'class 1 is none, and "dog" in'),
        (None, "does not name its classes, unlike"),
    ],
)
def test_files_that_name_other_classes_are_refused(
    tmp_path: Path, names: list[str] | None, told: str
) -> None:
    first = str(make_parquet(tmp_path / "a.parquet", IMAGES[:2], [0, 1], ["cat", "dog"]))
    second = str(make_parquet(tmp_path / "b.parquet", IMAGES[2:4], [0, 1], ["cat", "dog"]))
    third = str(make_parquet(tmp_path / "c.parquet", IMAGES[4:6], [0, 0], names))
    columns = find_columns(first)
    assert [group.labels for group in row_groups(second, columns)] == [[0, 1]]
    with pytest.raises(UserError) as caught:
        list(row_groups(third, columns))
    assert str(caught.value).startswith(f"{third}: {told} {first}; ")


def part(split: str, number: int, count: int, folder: str = "") -> str:
    return f"{folder}{split}-{number:05d}-of-{count:05d}.parquet"


def test_the_files_of_a_split_by_their_names() -> None:
    train = [part("train", number, 3, "data/") for number in (2, 0, 1)]
    test = ["data/test-00000-of-00001-0a1b2c3d.parquet"]
    assert of_split([*train, *test], "train", "x") == train
    assert of_split([*train, *test, "data/readme.parquet"], "test", "x") == test
    assert of_split(["a.parquet", "b.parquet"], "anything", "x") == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([part("test", 0, 1), part("dev", 0, 1)], "no split 'train'; it has dev and test"),
        ([part("train", 0, 3), part("train", 2, 3)], "the files 00001 are missing (1 in all)"),
        (
            [part("train", 9, 10)],
            "the files 00000, 00001, 00002, ... are missing (9 in all)",
        ),
        ([part("train", 0, 1), part("train", 0, 2)], "cut into 1 and 2; keep one kind"),
        (
            [part("train", 0, 1, "a/"), part("train", 0, 1, "b/")],
            "in 2 folders (a and b), as those of several configurations; name the one that is "
            "meant, like x/b",
        ),
    ],
)
def test_a_split_that_is_not_whole(names: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        of_split(names, "train", "x")
    assert told in str(caught.value)
    assert str(caught.value).startswith("x: ")
