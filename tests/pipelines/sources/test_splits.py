"""Which folders are splits, which one is meant, and trees of them."""

from pathlib import Path

import pytest

from pipelines.sources import open_source
from pipelines.sources.splits import are_splits, folder_of
from tests.pipelines.sources.trees import KINDS, images, labelled, plant
from tests.refusals import refused


def test_only_names_of_splits_are_splits() -> None:
    assert are_splits(["train", "val"])
    assert are_splits(["Training", "Testing"])
    assert are_splits(["valid"])
    assert not are_splits(["test", "cat"])
    assert not are_splits(["train2017"])
    assert not are_splits([])


@pytest.mark.parametrize(
    ("split", "folders", "expected"),
    [
        ("train", ("train", "val"), "train"),
        ("train", ("Training", "Testing"), "Training"),
        ("validation", ("train", "val"), "val"),
        ("val", ("train", "dev"), "dev"),
        ("val", ("val", "validation"), "val"),
        ("evaluation", ("test", "train"), "test"),
    ],
)
def test_a_split_has_several_names(split: str, folders: tuple[str, ...], expected: str) -> None:
    assert folder_of(split, folders, "x") == expected


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("test", "x: its first folders are splits, and there is no folder of the split 'test'; "
                 "say --split dev or train or valid"),
        ("cats", "x: its first folders are splits, and there is no folder of the split 'cats'; "
                 "say --split dev or train or valid"),
        ("val", "x: its first folders are splits, and dev and valid may both be the split 'val'; "
                "say --split dev or valid"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_there_is_refused(split: str, told: str) -> None:
    assert refused(lambda: folder_of(split, ("train", "dev", "valid"), "x")) == told


SPLIT = images("train/cat/1.png", "train/dog/2.png", "val/cat/1.png", "val/eel/3.png", "test/4.png")


@pytest.mark.parametrize("around", ["", "set/"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_what_lies_below_its_folder(kind: str, around: str, tmp_path: Path) -> None:
    files = {f"{around}{name}": data for name, data in SPLIT.items()}
    descriptor = plant(tmp_path, kind, {**files, f"{around}notes.csv": b"x"})
    train = open_source(descriptor, "train")
    assert train.classes == ("cat", "dog")
    assert labelled(train) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert labelled(open_source(descriptor, "validation")) == {
        "cat/1.png": "cat",
        "eel/3.png": "eel",
    }
    assert labelled(open_source(descriptor, "test")) == {"4.png": "all"}
    none = open_source(f"{descriptor}#classes=none", "train")
    assert labelled(none) == {"cat/1.png": "all", "dog/2.png": "all"}
    assert "say --split test or train or val" in refused(
        lambda: open_source(descriptor, "other").classes
    )


@pytest.mark.parametrize("kind", KINDS)
def test_imagenet_as_kaggle_packs_it(kind: str, tmp_path: Path) -> None:
    top = "ILSVRC/Data/CLS-LOC"
    files = {
        **images(f"{top}/train/n01440764/a.JPEG", f"{top}/train/n01443537/b.JPEG"),
        **images(f"{top}/val/v.JPEG", f"{top}/test/t.JPEG"),
        "ILSVRC/Annotations/CLS-LOC/train/n01440764/a.xml": b"<a/>",
        "LOC_synset_mapping.txt": b"n01440764 tench",
    }
    descriptor = plant(tmp_path, kind, files)
    assert labelled(open_source(descriptor, "train")) == {
        "n01440764/a.JPEG": "n01440764",
        "n01443537/b.JPEG": "n01443537",
    }
    assert labelled(open_source(descriptor, "val")) == {"v.JPEG": "all"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_called_test_is_a_class(kind: str, tmp_path: Path) -> None:
    descriptor = plant(tmp_path, kind, images("test/1.png", "train/2.png", "cat/3.png"))
    assert open_source(descriptor, "train").classes == ("cat", "test", "train")


def test_folders_of_a_split_are_its_own(tmp_path: Path) -> None:
    root = Path(plant(tmp_path, "folder", SPLIT))
    (root / "train/empty").mkdir()
    (root / "val/other").mkdir()
    (root / "notes").mkdir()
    (root / "train/cat/broken.png").symlink_to("nowhere")
    (root / "val/cat/broken.png").symlink_to("nowhere")
    source = open_source(str(root), "train")
    assert source.classes == ("cat", "dog", "empty")
    assert {item.key for item in source.index()} == {
        "cat/1.png",
        "dog/2.png",
        "empty/",
        "train/cat/broken.png",  # no record; told by its whole name
    }
    (root / "train/loose.png").write_bytes(b"x")
    told = refused(lambda: open_source(str(root), "train").classes)
    assert "both in class folders and beside them (train/loose.png)" in told


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_a_tree_is_the_tree_of_that_folder(kind: str, tmp_path: Path) -> None:
    whole = open_source(plant(tmp_path, kind, SPLIT), "train")
    alone = open_source(str(plant(tmp_path / "alone", "folder", SPLIT)) + "/train", "train")
    one, other = (sorted(source.index(), key=lambda item: item.key) for source in (whole, alone))
    assert [(item.key, item.label, item.size) for item in one] == [
        (item.key, item.label, item.size) for item in other
    ]
    assert whole.classes == alone.classes
