"""WebDataset shards, written by `tarfile`."""

import json
import logging
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.images import ImageError, decode_image
from pipelines.preprocess.index import index_of
from pipelines.sources import Item, open_source
from tests.pipelines.sources.miniature import add, jpeg
from tests.refusals import refused

COUNT = 6


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [jpeg(rng) for _ in range(2 * COUNT)]


def shard(path: Path, pictures: Sequence[bytes], first: int = 0, **files: Sequence[object]) -> Path:
    """Samples 000, 001 ... of a .jpg each and of further files, one a sample, by extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(pictures):
            add(archive, f"{first + number:03d}.jpg", data)
            for extension, values in files.items():
                value = values[number]
                written = value if isinstance(value, bytes) else str(value).encode()
                add(archive, f"{first + number:03d}.{extension}", written)
    return path


def listed(names: object, split: str = "train") -> list[Item]:
    return list(open_source(f"wds:{names}", split).index())


def reasons(names: object) -> dict[str, str]:
    source = open_source(f"wds:{names}", "train")
    told = {}
    for item in source.index():
        try:
            source.read(item)
        except ImageError as error:
            told[item.key] = error.reason
    return told


def test_labels_in_cls_and_the_same_names_in_two_shards(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    labels = [0, 3, 1, 1, 0, 3]
    for number in range(2):
        some = pictures[number * COUNT : (number + 1) * COUNT]
        shard(tmp_path / f"again-{number:06d}.tar", some, cls=labels)
    source = open_source(f"wds:{tmp_path}/again-{{000000..000001}}.tar", "train")
    assert source.classes == ("0", "1", "2", "3")
    items = list(source.index())
    assert [item.key for item in items] == [
        f"again-{number:06d}/{sample:03d}" for number in range(2) for sample in range(COUNT)
    ]
    assert [item.label for item in items] == labels * 2
    again = open_source(source.descriptor, "train")
    for one in (source, again, pickle.loads(pickle.dumps(source))):
        for data, item in zip(pictures, items, strict=True):
            picture = one.read(item)
            np.testing.assert_array_equal(picture.pixels, decode_image(data))
            assert picture.label == item.label
    index = index_of(source, 0)
    assert (index.records, index.duplicates) == (2 * COUNT, 0)
    for names in (tmp_path, f"{tmp_path}/*.tar", ",".join(map(str, sorted(tmp_path.iterdir())))):
        assert index_of(open_source(f"wds:{names}", "train"), 0).digest == index.digest


def test_texts_are_classes(tmp_path: Path, pictures: list[bytes]) -> None:
    path = shard(tmp_path / "x.tar", pictures[:4], cls=["dog", "10", "cat\n", "dog"])
    assert open_source(f"wds:{path}", "train").classes == ("10", "cat", "dog")
    assert [item.label for item in listed(path)] == [2, 0, 1, 2]


def test_labels_in_json(tmp_path: Path, pictures: list[bytes]) -> None:
    facts = [json.dumps({"label": n, "kind": "ab"[n % 2]}) for n in (2, 0, 1)]
    path = shard(tmp_path / "x.tar", pictures[:3], json=facts)
    assert [item.label for item in listed(path)] == [2, 0, 1]
    source = open_source(f"wds:{path}#label=kind", "train")
    assert source.classes == ("a", "b")
    assert [item.label for item in source.index()] == [0, 0, 1]
    told = refused(lambda: listed(f"{path}#label=hue"))
    assert told == f"wds:{path}: no sample has a key hue in a .json file (--label-column)"
    both = shard(tmp_path / "y.tar", pictures[:3], json=facts, cls=[0, 0, 1])
    assert [item.label for item in listed(both)] == [0, 0, 1], ".cls goes before"
    assert [item.label for item in listed(f"{both}#label=label")] == [2, 0, 1]


def test_shards_without_labels_and_labels_that_are_not_wanted(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    bare = shard(tmp_path / "x.tar", pictures[:3], txt=["a", "b", "c"])
    source = open_source(f"wds:{bare}", "train")
    assert source.classes == ("all",)
    assert [item.label for item in source.index()] == [0] * 3
    unknown = shard(tmp_path / "y.tar", pictures[:3], cls=[-1] * 3)
    assert "none of its 3 images has a label" in refused(lambda: listed(unknown))
    source = open_source(f"wds:{unknown}#classes=none", "train")
    assert source.classes == ("all",)
    assert [item.label for item in source.index()] == [0] * 3
    assert "say two things" in refused(lambda: listed(f"{bare}#classes=none&label=x"))


def test_samples_that_cannot_be_used_are_rejected(tmp_path: Path, pictures: list[bytes]) -> None:
    some = [*pictures[:3], b"text"]
    path = shard(tmp_path / "x.tar", some, cls=[0, b"", -1, 1])
    told = reasons(path)
    assert told.pop("x/003").startswith("not a readable JPEG")
    assert told == {"x/001": "no label", "x/002": "no class of the label -1"}


def test_several_images_of_a_sample(tmp_path: Path, pictures: list[bytes]) -> None:
    path = shard(tmp_path / "x.tar", pictures[:2], 0, cls=[0, 1], **{"seg.jpg": pictures[2:4]})
    told = refused(lambda: listed(path))
    assert told == (
        f"wds:{path}: the sample x/000 has several images, jpg, seg.jpg; choose one with "
        "--image-column"
    )
    source = open_source(f"wds:{path}#image=seg.jpg", "train")
    read = [source.read(item).pixels for item in source.index()]
    np.testing.assert_array_equal(read, [decode_image(data) for data in pictures[2:4]])
    with tarfile.open(path, "a") as archive:
        add(archive, "more.jpg", pictures[0])
        add(archive, "more.cls", b"1")
    assert reasons(f"{path}#image=seg.jpg") == {"x/more": "no .seg.jpg in this sample"}


def test_what_is_left_out_is_told_in_one_line(
    tmp_path: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a", "b", "c"]
    facts = ["{}"] * 3
    path = shard(tmp_path / "x.tar", pictures[:3], cls=[0, 1, 1], txt=texts, json=facts)
    with caplog.at_level(logging.WARNING):
        source = open_source(f"wds:{path}", "train")
        assert len(list(source.index())) == len(list(source.index())) == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        f"wds:{path}: left out 6 members that are neither images nor labels (3 .txt, 3 .json)"
    )


def test_a_tar_of_pairs_is_told_that_it_is_a_shard(
    tmp_path: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(tmp_path / "x.tar", pictures[:3], cls=[0, 1, 1])
    with caplog.at_level(logging.WARNING):
        assert len(list(open_source(f"tar:{path}", "train").index())) == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: a WebDataset shard; wds:{path} reads it with its labels"
    )


def test_what_cannot_be_a_set_of_classes_or_images(tmp_path: Path, pictures: list[bytes]) -> None:
    path = shard(tmp_path / "x.tar", pictures[:2], cls=[0, 2**62])
    assert refused(lambda: listed(path)).startswith(f"wds:{path}: .cls holds the label {2**62}")
    cut = shard(tmp_path / "y.tar", pictures[:2], cls=[0, 1])
    cut.write_bytes(cut.read_bytes()[:3000])
    assert f"{cut}: cut short" in refused(lambda: listed(cut))
    with tarfile.open(cut, "w") as archive:
        add(archive, "0.cls", b"1")
    assert refused(lambda: listed(cut)) == f"wds:{cut}: no image in 1 shards"
