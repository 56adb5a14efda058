"""The files of a split by their names, as `datasets` goes by them."""

import pytest

from pipelines.sources.parquet_splits import of_split
from tests.refusals import refused


def part(split: str, number: int, count: int, folder: str = "") -> str:
    return f"{folder}{split}-{number:05d}-of-{count:05d}.parquet"


def test_the_files_of_a_split_by_their_numbered_names() -> None:
    train = [part("train", number, 3, "data/") for number in (2, 0, 1)]
    test = ["data/test-00000-of-00001-0a1b2c3d.parquet"]
    assert of_split([*train, *test], "train", "x") == train
    assert of_split([*train, *test, "data/readme.parquet"], "test", "x") == test
    assert of_split(["a.parquet", "b.parquet"], "anything", "x") == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        # The branch of a hub that is converted to Parquet; partial-train where it is cut short.
        (["default/train/0000.parquet", "default/test/0000.parquet"], "train", [0]),
        (["default/train/0000.parquet", "default/train/0001.parquet"], "train", [0, 1]),
        (["default/partial-train/0000.parquet", "default/test/0000.parquet"], "train", [0]),
        (["default/unsupervised/0000.parquet", "default/test/0.parquet"], "unsupervised", [0]),
        (["train/a/0.parquet", "train/b/0.parquet", "val/0.parquet"], "train", [0, 1]),
        # Files, with the words of `datasets` between its separators.
        (["train.parquet", "test.parquet"], "train", [0]),
        (["my_train_file.parquet", "trained.parquet"], "train", [0]),
        (["train0.parquet", "train1.parquet", "dev.parquet"], "train", [0, 1]),
        (["data/train.parquet", "data/eval.parquet"], "test", [1]),
        (["valid.parquet", "train.parquet"], "validation", [0]),
        (["dev.parquet", "train.parquet"], "val", [0]),
        (["Train.parquet", "Testing.parquet"], "test", [1]),
        # A folder's name goes before a file's, a numbered name before both.
        (["train/test-bench.parquet", "test/train-bench.parquet"], "train", [0]),
        ([part("train", 0, 1, "test/"), "train/0.parquet"], "train", [0]),
        (["train/part-00000-of-00001.parquet", "test/part-00000-of-00001.parquet"], "train", [0]),
        # Numbered names of another word, and of two.
        ([part("val", 0, 1), part("train", 0, 1)], "validation", [0]),
        ([part("birds-train", 0, 1), part("birds-test", 0, 1)], "train", [0]),
        ([part("train_flip", 0, 1), part("train", 0, 1)], "train", [1]),
        # No name tells a split: a word in another word, or words of two splits.
        (["training_and_test.parquet", "pretrained.parquet"], "train", [0, 1]),
    ],
)
def test_the_files_of_a_split_by_words(names: list[str], split: str, chosen: list[int]) -> None:
    assert of_split(names, split, "x") == [names[number] for number in chosen]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([part("test", 0, 1), part("dev", 0, 1)], "no split 'train'; it has dev and test"),
        (["test.parquet", "dev.parquet"], "no split 'train'; it has test and validation"),
        (["default/test/0000.parquet"], "no split 'train'; it has test (--split)"),
        ([part("train", 0, 3), part("train", 2, 3)], "the files 00001 are missing (1 in all)"),
        (
            [part("train", 9, 10)],
            "the files 00000, 00001, 00002, ... are missing (9 in all)",
        ),
        ([part("train", 0, 1), part("train", 0, 2)], "cut into 1 and 2; keep one kind"),
        (
            [part("a-train", 0, 1), part("b-train", 0, 1)],
            "files of 'train' are called a-train and b-train; keep one kind",
        ),
        (
            [part("train", 0, 1, "a/"), part("train", 0, 1, "b/")],
            "in 2 folders (a and b), as those of several configurations; name the one that is "
            "meant, like x/b",
        ),
        (
            ["default/train/0000.parquet", "other/train/0000.parquet"],
            "in 2 folders (default and other), as those of several configurations; name the one "
            "that is meant, like x/other",
        ),
        (["a/train.parquet", "b/train.parquet"], "in 2 folders (a and b)"),
    ],
)
def test_a_split_that_is_not_there_or_not_whole(names: list[str], told: str) -> None:
    line = refused(lambda: of_split(names, "train", "x"))
    assert told in line
    assert line.startswith("x: ")
