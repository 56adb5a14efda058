"""Files that are no images are counted and told of."""

import os
from pathlib import Path

import pytest

from pipelines.sources import open_source
from pipelines.sources.left_out import LeftOut
from tests.pipelines.sources.trees import KINDS, images, plant


def told(*names: str) -> str:
    left = LeftOut()
    for name in names:
        left.note(name)
    return left.remark


def test_files_are_counted_by_extension() -> None:
    many = ["a/1.json"] * 40 + ["1.CLS"] * 30 + ["x.tar.gz", "noextension", "a.b/noextension"]
    expected = "73 files that are no images were left out: .json 40, .cls 30, .gz 1, others 2"
    assert told(*many) == expected
    assert told("1.txt") == "1 file that is no image was left out: .txt 1"


def test_the_rarest_are_others() -> None:
    names = [f"1.{kind}" for number, kind in enumerate("abcdefg", 2) for _ in range(number)]
    assert told(*names).endswith("left out: .g 8, .f 7, .e 6, .d 5, .c 4, others 5")


def test_what_lies_beside_any_images_is_not_told_of() -> None:
    assert told() == ""
    assert told("README", "a/readme.md", "LICENSE.txt", "Thumbs.db", "desktop.ini") == ""


def test_memory_does_not_grow_with_the_kinds() -> None:
    left = LeftOut()
    for number in range(5000):
        left.note(f"a.{number}")
    assert len(left._counts) <= 1001
    assert left._counts.total() == 5000


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_tells_what_it_left_out(kind: str, tmp_path: Path) -> None:
    others = {"a/1.txt": b"", "a/1.json": b"{}", "b/2.txt": b"", "README.md": b"", ".git/x": b""}
    descriptor = plant(tmp_path, kind, {**images("a/1.png", "b/2.png"), **others})
    source = open_source(descriptor, "train")
    expected = "3 files that are no images were left out: .txt 2, .json 1"
    assert source.remarks() == (expected,)
    assert len(list(source.index())) == 2
    assert open_source(f"{descriptor}#classes=none", "train").remarks() == (expected,)


def test_nothing_but_images_leaves_nothing_to_tell(tmp_path: Path) -> None:
    root = Path(plant(tmp_path, "folder", images("a/1.png", "b/2.png")))
    (root / "empty").mkdir()
    os.mkfifo(root / "a/pipe.png")  # rejected, which is told elsewhere
    assert open_source(str(root), "train").remarks() == ()
