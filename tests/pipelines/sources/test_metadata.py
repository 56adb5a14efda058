"""metadata.jsonl and metadata.csv as Hugging Face's imagefolder has them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.preprocess.index import index_of
from pipelines.sources import labels as limits
from pipelines.sources import open_source
from pipelines.sources.metadata import read_metadata
from tests.pipelines.sources.trees import KINDS, images, labelled, plant
from tests.refusals import refused


def lines(*rows: object) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def row(name: str, label: object, column: str = "label") -> dict[str, object]:
    return {"file_name": name, column: label}


def read(data: bytes, name: str = "metadata.jsonl", column: str = "") -> Sequence[str] | None:
    labelling = read_metadata([(name, data)], "", column, "x")
    return None if labelling is None else labelling.classes


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_file_and_folders_are_none(kind: str, tmp_path: Path) -> None:
    content = lines(
        row("a/1.png", 2), row("./a/2.png", 0), row("b/gone.png", 1), row("b/4.png", None)
    )
    files = images("a/1.png", "a/2.png", "b/3.png", "b/4.png")
    descriptor = plant(tmp_path, kind, {**files, "metadata.jsonl": content})
    source = open_source(descriptor, "train")
    assert source.classes == ("0", "1", "2")
    assert labelled(source) == {
        "a/1.png": "2",
        "a/2.png": "0",
        "b/3.png": "!not in metadata.jsonl",
        "b/4.png": "!metadata.jsonl gives it no label",
    }
    assert source.remarks() == ()
    assert open_source(f"{descriptor}#classes=none", "train").classes == ("all",)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_classes_by_name(kind: str, tmp_path: Path) -> None:
    content = '﻿file_name,text,label\r\n2.png,"a, b",ibis\r\n1.png,c,ant\r\n3.png,d,ibis\r\n'
    files = {**images("w/1.png", "w/2.png", "w/3.png"), "w/metadata.csv": content.encode()}
    source = open_source(plant(tmp_path, kind, files), "train")
    assert source.classes == ("ant", "ibis")
    assert labelled(source) == {"w/1.png": "ant", "w/2.png": "ibis", "w/3.png": "ibis"}


@pytest.mark.parametrize("kind", KINDS)
def test_another_column_may_be_named(kind: str, tmp_path: Path) -> None:
    content = lines({**row("1.png", 0), "kind": "cat"}, {**row("2.png", 1), "kind": "ant"})
    descriptor = plant(tmp_path, kind, {**images("1.png", "2.png"), "metadata.jsonl": content})
    source = open_source(f"{descriptor}#label=kind", "train")
    assert labelled(source) == {"1.png": "cat", "2.png": "ant"}
    assert labelled(open_source(source.descriptor, "train")) == labelled(source)
    told = refused(lambda: open_source(f"{descriptor}#label=sort", "train").classes)
    assert "no label in a column 'sort'; columns are file_name, label, kind" in told


def test_a_column_needs_a_file(tmp_path: Path) -> None:
    descriptor = plant(tmp_path, "folder", images("a/1.png"))
    told = refused(lambda: open_source(f"{descriptor}#label=kind", "train").classes)
    assert told.endswith("no label in a column 'kind'; there is no metadata.jsonl or metadata.csv")


@pytest.mark.parametrize("content", [
    lines({"file_name": "a/1.png", "text": "a cat"}),
    lines({"image": "a/1.png", "label": 1}),
    b"",
])  # fmt: skip
def test_captions_leave_folders_the_classes(content: bytes, tmp_path: Path) -> None:
    files = {**images("a/1.png", "b/2.png"), "metadata.jsonl": content}
    source = open_source(plant(tmp_path, "zip", files), "train")
    assert labelled(source) == {"a/1.png": "a", "b/2.png": "b"}


def test_each_file_is_of_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    files = {
        **images("train/x/1.png", "train/2.png", "val/1.png"),
        "train/x/metadata.csv": b"file_name,label\n1.png,4\n",
        "train/metadata.csv": b"file_name,label\n2.png,2\n../val/1.png,9\n",
        "val/metadata.csv": b"no list at all \xff",
    }
    descriptor = plant(tmp_path, "tar", files)
    source = open_source(descriptor, "train")
    assert labelled(source) == {"x/1.png": "4", "2.png": "2"}
    assert len(source.classes) == 5


def test_a_file_above_the_splits_names_the_images_of_all(tmp_path: Path) -> None:
    content = lines(row("train/1.png", "ant"), row("val/1.png", "bee"))
    files = {**images("train/1.png", "val/1.png"), "metadata.jsonl": content}
    descriptor = plant(tmp_path, "folder", files)
    assert labelled(open_source(descriptor, "val")) == {"1.png": "bee"}


def test_a_change_of_the_file_is_a_change_of_the_source(tmp_path: Path) -> None:
    root = Path(plant(tmp_path, "folder", images("1.png", "2.png")))
    digests = set[str]()
    for rows in ([row("1.png", 0)], [row("1.png", 0), row("2.png", 0)], [row("2.png", 0)]):
        (root / "metadata.jsonl").write_bytes(lines(*rows))
        digests.add(index_of(open_source(str(root), "train"), 0).digest)
    assert len(digests) == 3


def test_columns_that_name_files_and_numbers_of_a_csv() -> None:
    assert read(lines({"image_file_name": "1.png", "label": 1})) == ("0", "1")
    assert read(b"file_name,label\n1.png,1\n2.png,\n", "metadata.csv") == ("0", "1")
    assert read(b"file_name,label\n1.png,1\n2.png,x\n", "metadata.csv") == ("1", "x")
    assert read(b"file_name,label\n1.png,1,9\n\n2.png\n", "metadata.csv") == ("0", "1")
    assert read(lines(row("1.png", "10"), row("2.png", "9"))) == ("10", "9")
    assert read(lines(row("1.png", "a\n\ud800"))) == ("a\\n\\ud800",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"file_name": 1', "line 1: cannot be read as JSON"),
        (lines(row("a", 1)) + b"[" * 100_000, "line 2: cannot be read as JSON"),
        (b"\xff", "is not in UTF-8"),
        (b"[1]\n", "line 1 is no JSON object"),
        (lines(row("a", [1, 2])), "line 1: the label is a vector, neither"),
        (lines(row("a", 0.5)), "line 1: the label is 0.5, neither"),
        (lines(row("a", True)), "line 1: the label is True, neither"),
        (lines(row("a", -1)), "line 1: the label is -1, neither"),
        (lines(row("a", 1), row("b", "x")), "some labels are numbers and some are text"),
        (lines(row("a", 1), row("./a", 2)), "line 2: a has two labels"),
        (lines({"file_name": 3, "label": 1}), "line 1: file_name holds no name of a file"),
        (lines({"a_file_name": "a", "b_file_name": "b", "label": 1}), "both name files"),
        (lines(row("a", 2**62)), f"label {2**62} is beyond"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_its_line(content: bytes, what: str) -> None:
    told = refused(lambda: read(content))
    assert told.startswith("x: metadata.jsonl")
    assert what in told
    assert "--classes none" in told
    assert len(told) < 300


def test_bad_csv_is_told() -> None:
    content = b"file_name,label\n" + b'"' + b"x" * 200_000 + b'",1\n'
    told = refused(lambda: read(content, "metadata.csv"))
    assert told.startswith("x: metadata.csv: line 2: no CSV (field larger than field limit")


def test_files_must_agree() -> None:
    one = ("a/metadata.jsonl", lines(row("1.png", 1)))
    other = ("b/metadata.jsonl", lines({"file_name": "1.png", "text": "x"}))
    told = refused(lambda: read_metadata([one, other], "", "", "x"))
    assert "x: b/metadata.jsonl: no label in a column 'label'" in told
    other = ("metadata.csv", b"file_name,label\na/1.png,0\n")
    told = refused(lambda: read_metadata([one, other], "", "", "x"))
    assert "x: metadata.csv: a/1.png has another label in another file" in told


def test_words_without_end_are_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.metadata.MAX_CLASSES", 3)
    content = lines(*(row(f"{number}.png", f"word {number}") for number in range(4)))
    assert "4 different labels are beyond the 3 classes" in refused(lambda: read(content))
    assert limits.MAX_CLASSES > 21_841
