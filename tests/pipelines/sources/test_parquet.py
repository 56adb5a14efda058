import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelines.images import ImageError, decode_image
from pipelines.preprocess.index import build_index
from pipelines.sources import open_source
from pipelines.sources.parquet import GROUPS_KEPT, ParquetSource
from tests.pipelines.sources.miniature import jpeg, png
from tests.pipelines.sources.prepared import make_parquet
from tests.refusals import refused

COUNT = 19


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [jpeg(rng) for _ in range(COUNT)]


def refusal(path: Path, split: str = "train") -> str:
    return refused(lambda: list(open_source(f"parquet:{path}", split).index()))


def test_rows_with_names_from_the_metadata(tmp_path: Path, pictures: list[bytes]) -> None:
    labels = [n % 3 for n in range(COUNT)]
    path = make_parquet(tmp_path / "x.parquet", pictures, labels, ["cat", "dog", "eel"])
    source = open_source(f"parquet:{path}", "train")
    assert source.classes == ("cat", "dog", "eel")
    items = list(source.index())
    assert [(item.key, item.label) for item in items] == [
        (f"x.parquet/{n:07d}", label) for n, label in enumerate(labels)
    ]
    assert [item.group for item in items] == [f"x.parquet:{n // 4}" for n in range(COUNT)]
    with ThreadPoolExecutor(4) as pool:
        for data, picture in zip(pictures, pool.map(source.read, items), strict=True):
            np.testing.assert_array_equal(picture.pixels, decode_image(data))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(items[7]).pixels, source.read(items[7]).pixels)


def test_numbers_are_names_where_nothing_names_them(tmp_path: Path, pictures: list[bytes]) -> None:
    path = make_parquet(tmp_path / "x.parquet", pictures[:5], [0, 4, 2, 2, 1])
    assert open_source(f"parquet:{path}", "train").classes == ("0", "1", "2", "3", "4")
    path = make_parquet(tmp_path / "y.parquet", pictures[:5])
    assert open_source(f"parquet:{path}", "train").classes == ("all",)


def test_a_row_group_is_read_once_in_the_order_of_a_dataset(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", pictures, rows=5)
    source = ParquetSource(str(tmp_path), "train")
    reads = []
    whole = ParquetSource._read_images

    def counted(self: ParquetSource, name: str, group: int) -> object:
        reads.append((name, group))
        return whole(self, name, group)

    monkeypatch.setattr(ParquetSource, "_read_images", counted)
    items = list(build_index(source.index(), 0).items())
    assert [item.key for item in items] != sorted(item.key for item in items)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(source.read, items))) == 3 * COUNT
    assert len(reads) == len(set(reads)) == 3 * 4
    assert len(source._kept._kept) == GROUPS_KEPT
    groups = [
        key for key, _ in groupby(item.location.replace(":", " ", 2).split()[::2] for item in items)
    ]
    assert len(groups) == 3 * 4


def test_splits_by_file_names(tmp_path: Path, pictures: list[bytes]) -> None:
    for split, count in (("train", 2), ("validation", 1)):
        for number in range(count):
            make_parquet(
                tmp_path / f"data/{split}-{number:05d}-of-{count:05d}-0a1b2c3d.parquet",
                pictures[:4],
            )
    train, validation = (
        open_source(f"parquet:{tmp_path}", split) for split in ("train", "validation")
    )
    assert len({item.key for item in train.index()}) == 8
    assert next(item.key for item in validation.index()).startswith(
        "data/validation-00000-of-00001-"
    )
    assert "no split 'test'; it has train and validation" in refusal(tmp_path, "test")
    (tmp_path / "data/train-00000-of-00002-0a1b2c3d.parquet").unlink()
    assert "the files 00000 are missing (1 in all)" in refusal(tmp_path)


def test_configurations_are_not_mixed(tmp_path: Path, pictures: list[bytes]) -> None:
    for folder in ("cropped", "full"):
        for split in ("train", "test"):
            make_parquet(tmp_path / folder / f"{split}-00000-of-00001.parquet", pictures[:4])
    told = refusal(tmp_path)
    assert "files of 'train' are in 2 folders (cropped and full)" in told
    assert f"parquet:{tmp_path}/full" in told
    assert len(list(open_source(f"parquet:{tmp_path / 'full'}", "train").index())) == 4


def test_fingerprint_is_of_content_and_not_of_place(tmp_path: Path, pictures: list[bytes]) -> None:
    one = make_parquet(tmp_path / "a/x.parquet", pictures)
    same = make_parquet(tmp_path / "b/x.parquet", pictures)
    other = make_parquet(tmp_path / "c/x.parquet", [*pictures[:-1], png()])
    first, second, third = (
        open_source(f"parquet:{path}", "train").fingerprint for path in (one, same, other)
    )
    assert first == second != third


def test_rows_without_bytes_or_label_are_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    images = [pictures[0], None, pictures[1], pictures[2], b"text"]
    path = make_parquet(tmp_path / "x.parquet", images, [0, 1, None, 7, 1], ["cat", "dog"])
    source = open_source(f"parquet:{path}", "train")
    reasons = []
    for item in source.index():
        try:
            source.read(item)
        except ImageError as error:
            reasons.append((item.key[-1], error.reason))
    assert reasons[:3] == [
        ("1", "no bytes, only the path 1.jpg"),
        ("2", "no label"),
        ("3", "no class of the label 7"),
    ]
    assert "not a readable JPEG" in reasons[3][1]
    assert len(reasons) == 4


def test_plain_bytes_and_another_name_for_the_image(tmp_path: Path, pictures: list[bytes]) -> None:
    table = pa.table(
        {"img": pa.array(pictures, pa.large_binary()), "label": pa.array([1] * COUNT, pa.uint8())}
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    source = open_source(f"parquet:{tmp_path / 'x.parquet'}", "train")
    assert source.classes == ("0", "1")
    np.testing.assert_array_equal(
        source.read(next(source.index())).pixels, decode_image(pictures[0])
    )


def test_what_cannot_be_read_is_told(tmp_path: Path, pictures: list[bytes]) -> None:
    path = make_parquet(tmp_path / "x.parquet", pictures)
    data = path.read_bytes()
    for damaged in (b"", b"PAR1", b"text" * 100, data[:-100], data[: len(data) // 2]):
        path.write_bytes(damaged)
        assert "fetch it again" in refusal(path)
    parquet.write_table(pa.table({"text": ["x"]}), path)
    assert "no column of images" in refusal(path)
    parquet.write_table(pa.table({"a": [b"x"], "b": [b"x"]}), path)
    assert "more than one column of images" in refusal(path)
    parquet.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), path)
    assert "labels must be whole numbers" in refusal(path)
    (tmp_path / "empty").mkdir()
    assert "no .parquet file in it" in refusal(tmp_path / "empty")
    make_parquet(tmp_path / "mixed/a.parquet", pictures[:2], [0, 1])
    make_parquet(tmp_path / "mixed/b.parquet", pictures[:2])
    assert "has no column label" in refusal(tmp_path / "mixed")
    make_parquet(tmp_path / "mixed/0.parquet", pictures[:2])
    assert f"has a column label, and {tmp_path}/mixed/0.parquet has none" in refusal(
        tmp_path / "mixed"
    )


def test_damage_that_shows_when_images_are_read_is_not_a_bad_image(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    path = make_parquet(tmp_path / "x.parquet", pictures, rows=100)
    source = open_source(f"parquet:{path}", "train")
    item = next(source.index())
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(OSError, match="row group 0 of"):
        source.read(item)
