"""Datasets that were saved to disk: streams of Arrow, written by pyarrow as for `datasets`."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.images import decode_image
from pipelines.preprocess.index import index_of
from pipelines.sources import arrow_files, open_source
from pipelines.sources.arrow_files import heads, open_arrow
from tests.pipelines.sources.miniature import png
from tests.pipelines.sources.prepared import SAVED_CLASSES, SAVED_LABELS, make_parquet, make_saved
from tests.refusals import refused

PICTURES = [png((number, 0, 0)) for number in range(10)]


def refusal(path: Path, split: str = "train") -> str:
    return refused(lambda: list(open_source(f"parquet:{path}", split).index()))


def test_the_heads_tell_the_batches_that_pyarrow_reads(tmp_path: Path) -> None:
    path = make_saved(tmp_path / "x", PICTURES, files=1) / "data-00000-of-00001.arrow"
    opened = open_arrow(str(path))
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        assert opened.schema == reader.schema
        batches = list(reader)
        assert opened.rows == [batch.num_rows for batch in batches] == [3, 3, 3, 1]
        for number in (2, 0, 3, 1):
            for name in ("image", "label"):
                assert opened.column(number, name).equals(batches[number].column(name))
    size, told = heads(str(path))
    assert size == path.stat().st_size
    assert len(told) < size


def test_a_saved_dataset_reads_as_the_parquet_of_it(tmp_path: Path) -> None:
    saved = open_source(f"parquet:{make_saved(tmp_path / 'x', PICTURES)}", "train")
    assert saved.classes == tuple(SAVED_CLASSES)
    items = list(saved.index())
    assert [item.key for item in items[:6]] == [
        *(f"data-00000-of-00002.arrow/{row:07d}" for row in range(5)),
        "data-00001-of-00002.arrow/0000000",
    ]
    other = open_source(
        f"parquet:{make_parquet(tmp_path / 'y.parquet', PICTURES, SAVED_LABELS)}", "train"
    )
    assert [item.label for item in items] == [item.label for item in other.index()]
    for one in (saved, pickle.loads(pickle.dumps(saved))):
        for data, item in list(zip(PICTURES, items, strict=True))[:9]:
            np.testing.assert_array_equal(one.read(item).pixels, decode_image(data))
    moved = open_source(f"parquet:{make_saved(tmp_path / 'z', PICTURES)}", "train")
    assert index_of(moved, 0).digest == index_of(saved, 0).digest
    changed = open_source(
        f"parquet:{make_saved(tmp_path / 'w', [*PICTURES[:9], b'long'])}", "train"
    )
    assert changed.fingerprint != saved.fingerprint


def test_the_heads_are_read_once_for_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"parquet:{make_saved(tmp_path / 'x', PICTURES)}", "train")
    items = list(source.index())
    walked = []
    whole = arrow_files.open_arrow

    def counted(path: str) -> arrow_files.ArrowTable:
        walked.append(path)
        return whole(path)

    monkeypatch.setattr(arrow_files, "open_arrow", counted)
    again = pickle.loads(pickle.dumps(source))
    for item in items[:9]:
        again.read(item)
    assert len(walked) <= 2 + 2, "each file, and twice the first for its columns"


def test_splits_of_a_saved_dict(tmp_path: Path) -> None:
    make_saved(tmp_path / "x/train", PICTURES[:4])
    make_saved(tmp_path / "x/validation", PICTURES[:2], files=1)
    make_saved(tmp_path / "x/unsupervised", PICTURES[:3], files=1)
    splits = {"splits": ["train", "validation", "unsupervised"]}
    (tmp_path / "x/dataset_dict.json").write_text(json.dumps(splits))
    for split, count in {"train": 4, "validation": 2, "val": 2, "unsupervised": 3}.items():
        assert len(list(open_source(f"parquet:{tmp_path / 'x'}", split).index())) == count
    assert refusal(tmp_path / "x", "test") == (
        f"parquet:{tmp_path / 'x'}: no split 'test'; it has train and unsupervised and validation "
        "(--split)"
    )


def test_files_of_the_cache_are_no_data(tmp_path: Path) -> None:
    folder = make_saved(tmp_path / "x", PICTURES)
    (folder / "cache-0123.arrow").write_bytes(b"x")
    assert len(list(open_source(f"parquet:{folder}", "train").index())) == 10
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "names 2 files, of which 1 are missing (data-00001-of-00002.arrow)" in refusal(folder)
    (folder / "state.json").write_text("{")
    assert "state.json: damaged" in refusal(folder)


def test_a_stream_that_is_not_whole(tmp_path: Path) -> None:
    path = make_saved(tmp_path / "x", PICTURES, files=1) / "data-00000-of-00001.arrow"
    data = path.read_bytes()
    for left in (0, 4, 100, len(data) // 2, len(data) - 8, len(data) - 4):
        path.write_bytes(data[:left])
        told = refusal(path)
        assert told.startswith(f"{path}: cut short at byte {left}; fetch it again"), left
    for other in (b"text" * 99, b"\xff" * 8 + data[8:], data[:8] + b"\xff" * 400):
        path.write_bytes(other)
        assert "not an Arrow stream, or damaged" in refusal(path)


def test_a_dictionary_is_told(tmp_path: Path) -> None:
    labels = pa.array(["a", "b"]).dictionary_encode()
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), pa.schema([("label", labels.type)])) as sink:
        sink.write_batch(pa.record_batch({"label": labels}))
    assert "write the dataset as Parquet" in refusal(tmp_path / "x.arrow")


@pytest.mark.parametrize("count", [2, 5])
def test_paths_in_the_place_of_images_are_told(tmp_path: Path, count: int) -> None:
    folder = make_saved(tmp_path / "x", [None] * count, files=1)
    assert "its images are paths to files elsewhere (0.png), not bytes" in refusal(folder)
