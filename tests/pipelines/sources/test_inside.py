"""A folder inside an archive."""

from pathlib import Path

import pytest

from pipelines.sources import open_source
from pipelines.sources.inside import Place, place_of
from tests.pipelines.sources.trees import images, labelled, plant
from tests.refusals import refused

ARCHIVES = ("tar", "zip")
FILES = {
    **images("set/train/cat/1.png", "set/train/dog/2.png", "set/masks/cat/1.png", "other/3.png"),
    "set/train/labels.xml": b"",
    "set/notes.txt": b"",
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_only_what_lies_below_is_seen(kind: str, tmp_path: Path) -> None:
    descriptor = plant(tmp_path, kind, FILES)
    source = open_source(f"{descriptor}!set/train/", "train")
    assert source.descriptor == f"{descriptor}!set/train"
    for one in (source, open_source(source.descriptor, "train")):
        assert one.classes == ("cat", "dog")
        assert labelled(one) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert source.remarks() == ("1 file that is no image was left out: .xml 1",)
    _, path = descriptor.split(":")
    both = open_source(f"{descriptor}!set/train,{path}!set/masks", "train")
    assert sorted(item.key for item in both.index()) == ["cat/1.png", "cat/1.png", "dog/2.png"]


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("sets", "no folder sets in it; there are other, set"),
        ("set/tra", "no folder set/tra in it; in set there are masks, train"),
        ("other/x", "no folder other/x in it; in other there are no folders"),
        ("set/masks/x/y", "no folder set/masks/x/y in it; in set/masks there is cat"),
        ("set/train/cat/1.png", "no folder set/train/cat/1.png in it; in set/train/cat there"),
    ],
)
def test_what_there_is_instead_is_named(kind: str, folder: str, told: str, tmp_path: Path) -> None:
    descriptor = plant(tmp_path, kind, FILES)
    assert told in refused(lambda: open_source(f"{descriptor}!{folder}", "train").classes)


def test_many_folders_are_not_all_named(tmp_path: Path) -> None:
    files = images(*(f"{number:02d}/1.png" for number in range(30)))
    descriptor = plant(tmp_path, "zip", files)
    told = refused(lambda: open_source(f"{descriptor}!30", "train").classes)
    assert told.endswith("there are 00, 01, 02, 03, 04, 05, 06, 07, ...")


def test_a_mark_may_be_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a!b.zip").touch()
    (tmp_path / "c.zip!d").touch()
    (tmp_path / "c.zip").touch()
    (tmp_path / "dir").mkdir()
    for name, path, folder in (
        ("a!b.zip", "a!b.zip", ""),
        ("a!b.zip!x!y", "a!b.zip", "x!y"),
        ("c.zip!d", "c.zip!d", ""),
        ("c.zip!e//./f/", "c.zip", "e/f"),
        ("c.zip!", "c.zip", ""),
    ):
        assert place_of(f"{tmp_path}/{name}") == Place(f"{tmp_path}/{path}", folder)
    assert refused(lambda: place_of(f"{tmp_path}/dir!x")) == f"{tmp_path}/dir!x: no such file"


def test_who_writes_a_slash_is_told_of_the_mark(tmp_path: Path) -> None:
    (tmp_path / "c.zip").touch()
    told = refused(lambda: open_source(f"zip:{tmp_path}/c.zip/set/train", "train"))
    expected = f"no such file; a folder in {tmp_path}/c.zip is {tmp_path}/c.zip!set/train"
    assert told == f"{tmp_path}/c.zip/set/train: {expected}"
