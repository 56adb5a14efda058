"""Classes by folder, by a list of names, and none."""

import pytest

from pipelines.images import ImageError
from pipelines.sources.base import UNLABELLED
from pipelines.sources.labels import ByFolder, ByName, OneClass


def test_the_first_folder_is_the_class() -> None:
    assert ByFolder(["b", "a"]).classes == ("a", "b")
    assert ByFolder(["b", "a"]).label("b/a/1.png") == 1
    assert ByFolder([]).classes == ("all",)
    assert ByFolder([]).label("1.png") == 0


def test_one_class_takes_folders_too() -> None:
    assert OneClass().classes == ("all",)
    assert OneClass().label("b/a/1.png") == OneClass().label("1.png") == 0


def test_a_name_that_is_not_listed_has_no_class() -> None:
    labelling = ByName(("0", "1"), {"a/1.png": 1, "a/2.png": None}, "dataset.json")
    assert labelling.label("a/1.png") == 1
    assert labelling.unknown == UNLABELLED
    with pytest.raises(ImageError, match=r"not in dataset\.json"):
        labelling.label("a/3.png")
    with pytest.raises(ImageError, match=r"dataset\.json gives it no label"):
        labelling.label("a/2.png")


@pytest.mark.parametrize("folders", [("00000", "01000"), ("00", "01", "02")])
def test_folders_that_are_numbers_of_one_width_are_remarked_on(folders: tuple[str, ...]) -> None:
    remark = ByFolder(folders).remark
    assert f"{folders[0]}, {folders[1]}" in remark
    assert "--classes none" in remark
    assert "\n" not in remark


@pytest.mark.parametrize(
    "folders",
    [
        ("00000",),
        ("0000", "00001"),
        ("0", "1"),
        ("00000", "cat01"),
        ("\u0660\u0660", "\u0661\u0661"),
        (),
    ],
)
def test_other_folders_are_not(folders: tuple[str, ...]) -> None:
    assert ByFolder(folders).remark == ""
