"""What Parquet files tell without an image read: footer, labels, whether there are images."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet_columns import Columns, find_columns
from pipelines.sources.parquet_files import check_embedded, footer, open_parquet, row_groups
from schemas.errors import UserError
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import make_parquet
from tests.refusals import refused

IMAGES = [png((number, 0, 0)) for number in range(10)]


NO_OPTIONS = SourceOptions()


def write(path: Path, **columns: pa.Array) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def columns_of(path: str) -> Columns:
    return find_columns(path, parquet.read_schema(path), NO_OPTIONS)


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


def test_row_groups_number_the_rows_on(tmp_path: Path) -> None:
    labels = [0, 1, None, 1, 0, 0, 1, 1, 1, 0]
    path = str(make_parquet(tmp_path / "x.parquet", IMAGES, labels, ["cat", "dog"], rows=4))
    groups = list(row_groups(path, columns_of(path), NO_OPTIONS))
    assert [(group.number, group.first) for group in groups] == [(0, 0), (1, 4), (2, 8)]
    assert [label for group in groups for label in group.labels] == labels
    plain = str(make_parquet(tmp_path / "y.parquet", IMAGES, rows=6))
    groups = list(row_groups(plain, columns_of(plain), NO_OPTIONS))
    assert [group.labels for group in groups] == [[0] * 6, [0] * 4]


def test_texts_are_labels_and_an_empty_one_is_none(tmp_path: Path) -> None:
    texts = pa.array(["dog", "", None, "cat"])
    for labels in (texts, texts.dictionary_encode()):
        path = write(tmp_path / "x.parquet", image=pa.array(IMAGES[:4]), label=labels)
        (group,) = row_groups(path, columns_of(path), NO_OPTIONS)
        assert group.labels == ["dog", None, None, "cat"]


def images(*rows: tuple[bytes | None, str | None]) -> pa.Array:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": path} for data, path in rows], struct)


def test_paths_in_the_place_of_images_are_told_at_once(tmp_path: Path) -> None:
    one = write(tmp_path / "x.parquet", image=images(*[(None, f"/a/{n}.png") for n in range(9)]))
    told = refused(lambda: check_embedded(one, "image"))
    assert told.startswith(f"{one}: its images are paths to files elsewhere (/a/0.png), not bytes")
    assert "embed_table_storage" in told
    for rows in ([], [(None, "a.png"), (b"", None)], [(None, None)], [(IMAGES[0], "a.png")] * 3):
        check_embedded(write(tmp_path / "y.parquet", image=images(*rows)), "image")
    check_embedded(write(tmp_path / "z.parquet", image=pa.array([None], pa.binary())), "image")


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
    columns = columns_of(first)
    assert [group.labels for group in row_groups(second, columns, NO_OPTIONS)] == [[0, 1]]
    with pytest.raises(UserError) as caught:
        list(row_groups(third, columns, NO_OPTIONS))
    assert str(caught.value).startswith(f"{third}: {told} {first}; ")
