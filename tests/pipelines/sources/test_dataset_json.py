"""dataset.json: labels, none, and what is no such file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.preprocess.index import index_of
from pipelines.sources import Source, listed, open_source
from pipelines.sources.dataset_json import read_dataset_json
from pipelines.sources.labels import MAX_CLASSES
from tests.pipelines.sources.prepared import make_zip
from tests.pipelines.sources.trees import KINDS, images, labelled, plant
from tests.refusals import refused

NAMES = ("00000/img0.png", "00000/img1.png", "00001/img2.png")


def described(content: object) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def classes(content: object) -> tuple[str, ...]:
    return read_dataset_json([("dataset.json", described(content))], "", "x").classes


def told(content: object) -> str:
    return refused(lambda: classes(content))


def listing(labels: Mapping[str, Any]) -> dict[str, object]:
    return {"labels": [[name, label] for name, label in labels.items()]}


@pytest.mark.parametrize("around", ["", "edm/"])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_file(kind: str, around: str, tmp_path: Path) -> None:
    content = described(listing(dict(zip(NAMES, (3, 0, 1), strict=True))))
    files = images(*(f"{around}{name}" for name in (*NAMES, "00001/new.png")))
    descriptor = plant(tmp_path, kind, {**files, f"{around}dataset.json": content})
    source = open_source(descriptor, "train")
    assert source.classes == ("0", "1", "2", "3")
    own = around if kind == "folder" else ""  # a folder is taken as it is given
    expected = dict(zip(NAMES, "301", strict=True)) | {"00001/new.png": "!not in dataset.json"}
    assert labelled(source) == {f"{own}{key}": label for key, label in expected.items()}
    assert source.remarks() == ()
    none = open_source(f"{descriptor}#classes=none", "train")
    assert set(labelled(none).values()) == {"all"}
    assert none.classes == ("all",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_the_file_is_a_change_of_the_source(kind: str, tmp_path: Path) -> None:
    def digest(number: int, labels: Mapping[str, int]) -> str:
        root = tmp_path / str(number)
        root.mkdir()
        content = described(listing(labels))
        descriptor = plant(root, kind, {**images(*NAMES), "dataset.json": content})
        return index_of(open_source(descriptor, "train"), 0).digest

    whole: dict[str, int] = dict(zip(NAMES, (0, 0, 1), strict=True))
    digests = {
        digest(0, whole),
        digest(1, {**whole, NAMES[0]: 1}),
        digest(2, {name: whole[name] for name in NAMES[1:]}),
    }
    assert len(digests) == 3
    assert digest(3, whole) in digests


def test_without_labels_images_are_one_class(tmp_path: Path) -> None:
    def opened(content: object) -> Source:
        path = make_zip(tmp_path / "x.zip", {**images(*NAMES), "dataset.json": described(content)})
        return open_source(f"zip:{path}", "train")

    null = opened({"labels": None})
    assert labelled(null) == dict.fromkeys(NAMES, "all")
    assert opened({}).remarks() == ("dataset.json has no labels, so all images are one class",)


def test_archives_read_as_one_may_have_a_file_each(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES[:2]):
        content = described(listing({name: number}))
        make_zip(tmp_path / f"{number}.zip", {name: b"x", "dataset.json": content})
    source = open_source(f"zip:{tmp_path}/0.zip,{tmp_path}/1.zip", "train")
    assert labelled(source) == {NAMES[0]: "0", NAMES[1]: "1"}


def test_the_nearest_file_counts_and_one_in_a_class_does_not(tmp_path: Path) -> None:
    content = described(listing({"1.png": 1}))
    files = {**images("train/1.png", "val/1.png"), "train/dataset.json": content}
    descriptor = plant(tmp_path, "folder", {**files, "dataset.json": b"not looked at"})
    assert labelled(open_source(descriptor, "train")) == {"1.png": "1"}
    files = {**images("cat/1.png", "dog/1.png"), "cat/dataset.json": content}
    (tmp_path / "other").mkdir()
    source = open_source(plant(tmp_path / "other", "zip", files), "train")
    assert source.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"labels": [', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"labels": ' + b"[" * 100_000, "cannot be read as JSON"),
        (b'{"labels": [["a", ' + b"9" * 5000 + b"]]}", "cannot be read as JSON"),
        ([], "not {"),
        (7, "not {"),
        ({"labels": {"a": 1}}, "not {"),
        ({"labels": ["a"]}, '"a" among its labels'),
        ({"labels": [["a", 1, 2]]}, "among its labels is no [NAME, NUMBER]"),
        ({"labels": [[1, "a"]]}, '[1, "a"] among its labels'),
        (listing({"a": [0.0, 1.0]}), "the label of a is a vector, not a whole number"),
        (listing({"a": 1.5}), "the label of a is 1.5, not"),
        (listing({"a\n\ud800": True}), r"the label of a\n\ud800 is true, not"),
        (listing({"a": -1}), "is -1, not"),
        (listing({"a": "cat\n"}), r'is "cat\n", not'),
        (listing({"a": None}), "is null, not"),
        (listing({"a": 2**62}), f"label {2**62} is beyond the {MAX_CLASSES} classes allowed"),
        ({"labels": [["a", 1], ["./a", 2]]}, "a has two labels, 1 and 2"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_labels_is_told(content: object, what: str) -> None:
    line = told(content)
    assert line.startswith("x: dataset.json: ")
    assert what in line
    assert "--classes none" in line
    assert len(line) < 300


def test_the_most_classes_are_allowed() -> None:
    assert len(classes(listing({"a": MAX_CLASSES - 1}))) == MAX_CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_a_giant_file_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "MAX_LISTS", 1000)
    content = described(listing({"1.png": 0})) + b" " * 1000
    descriptor = plant(tmp_path, kind, {**images("1.png"), "dataset.json": content})
    line = refused(lambda: open_source(descriptor, "train").classes)
    assert "dataset.json: more than 1000 bytes of labels are not read" in line
    assert open_source(f"{descriptor}#classes=none", "train").classes == ("all",)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {**images("1.png"), "dataset.json": b'{"labels": null}'})
    path.write_bytes(path.read_bytes().replace(b'": null}', b'": nulL}', 1))
    line = refused(lambda: open_source(f"zip:{path}", "train").classes)
    assert "dataset.json: damaged: its CRC-32" in line
