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
from pipelines.sources import Item, open_source
from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet import GROUPS_KEPT, ParquetSource
from tests.pipelines.sources.miniature import jpeg, png
from tests.pipelines.sources.prepared import make_parquet
from tests.refusals import refused

COUNT = 19


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [jpeg(rng) for _ in range(COUNT)]


def listed(path: Path | str, split: str = "train") -> list[Item]:
    return list(open_source(f"parquet:{path}", split).index())


def refusal(path: Path | str, split: str = "train") -> str:
    return refused(lambda: listed(path, split))


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
    path = make_parquet(tmp_path / "z.parquet", pictures[:5], [0, 4, 2**62, 2, 1])
    assert f"holds the label {2**62}, and classes are numbered from 0 on" in refusal(path)


def test_a_row_group_is_read_once_in_the_order_of_a_dataset(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", pictures, rows=5)
    source = ParquetSource(str(tmp_path), "train", SourceOptions())
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


def test_a_split_in_the_name_of_a_folder_or_a_file(tmp_path: Path, pictures: list[bytes]) -> None:
    for number, split in enumerate(("train", "test")):
        make_parquet(tmp_path / f"hub/default/{split}/0000.parquet", pictures[: 3 + number])
        make_parquet(tmp_path / f"plain/{split}.parquet", pictures[: 3 + number])
    for place in ("hub", "hub/default", "plain"):
        for number, split in enumerate(("train", "test")):
            assert len(listed(tmp_path / place, split)) == 3 + number
        assert "no split 'validation'; it has test and train" in refusal(
            tmp_path / place, "validation"
        )
    # what is named outright is read as it is
    assert len(listed(tmp_path / "plain/test.parquet")) == 4
    assert listed(tmp_path / "hub/default/test")[0].key == "0000.parquet/0000000"
    make_parquet(tmp_path / "hub/other/train/0000.parquet", pictures[:3])
    assert "in 2 folders (default and other)" in refusal(tmp_path / "hub")


def test_an_option_is_no_part_of_the_place_that_is_told(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    for folder in ("a", "b"):
        make_parquet(tmp_path / folder / "train.parquet", pictures[:2])
    told = refusal(f"{tmp_path}#image=image")
    assert f"like parquet:{tmp_path}/b, or" in told


def test_columns_that_a_person_chose(tmp_path: Path, pictures: list[bytes]) -> None:
    columns = {
        "photo": pa.array(pictures[:4]),
        "thumb": pa.array(pictures[4:8]),
        "fine": pa.array([0, 3, 1, 2]),
        "coarse": pa.array(["dog", "cat", None, "dog"]),
    }
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table(columns), path)
    assert "choose one with --image-column" in refusal(path)
    source = open_source(f"parquet:{path}#image=thumb&label=coarse", "train")
    assert source.classes == ("cat", "dog")
    items = list(source.index())
    assert [item.label for item in items] == [1, 0, 0, 1]
    np.testing.assert_array_equal(source.read(items[0]).pixels, decode_image(pictures[4]))
    with pytest.raises(ImageError, match="no label"):
        source.read(items[2])
    again = open_source(source.descriptor, "train")
    assert again.descriptor == f"parquet:{path}#image=thumb&label=coarse"
    assert list(pickle.loads(pickle.dumps(again)).index()) == items
    assert open_source(f"parquet:{path}#image=photo&label=fine", "train").classes == (
        "0",
        "1",
        "2",
        "3",
    )
    assert "no column hue (--label-column)" in refusal(f"{path}#image=photo&label=hue")


def test_texts_are_classes_over_all_files(tmp_path: Path, pictures: list[bytes]) -> None:
    for name, labels in (("a", ["cow", "ant"]), ("b", ["bee", "ant"])):
        table = pa.table({"image": pictures[:2], "label": labels})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    source = open_source(f"parquet:{tmp_path}", "train")
    assert source.classes == ("ant", "bee", "cow")
    assert [item.label for item in source.index()] == [2, 0, 1, 0]


def test_images_without_classes(tmp_path: Path, pictures: list[bytes]) -> None:
    path = make_parquet(tmp_path / "x.parquet", pictures[:3], [-1] * 3, ["cat", "dog"])
    told = refusal(path)
    assert "none of its 3 images has a label" in told
    assert "--classes none" in told
    source = open_source(f"parquet:{path}#classes=none", "train")
    assert source.classes == ("all",)
    assert [item.label for item in source.index()] == [0] * 3
    assert source.read(next(source.index())).label == 0


def test_a_label_that_is_no_number_of_a_class(tmp_path: Path, pictures: list[bytes]) -> None:
    path = make_parquet(tmp_path / "x.parquet", pictures[:3], [0, 1, 2**62])
    told = refused(lambda: open_source(f"parquet:{path}", "train").classes)
    assert f"parquet:{path}: the column label holds the label {2**62}" in told


def test_files_without_a_row(tmp_path: Path) -> None:
    make_parquet(tmp_path / "x.parquet", [], [], ["cat"])
    assert refusal(tmp_path) == f"parquet:{tmp_path}: no row in 1 files"


def test_paths_in_the_place_of_images_are_told_before_any_is_listed(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    path = make_parquet(tmp_path / "x.parquet", [None] * 9)
    assert "its images are paths to files elsewhere (0.jpg), not bytes" in refusal(path)


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
    parquet.write_table(pa.table({"image": [b"x"], "label": [0.5]}), path)
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
