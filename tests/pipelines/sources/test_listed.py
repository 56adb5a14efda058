"""What a tree of names is: its classes, the folders around it, and what cannot be used."""

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.images import ImageError
from pipelines.sources import open_source
from pipelines.sources.base import Item
from pipelines.sources.listed import EMPTY_CLASS, MAX_BYTES, Found, ListedSource
from pipelines.sources.options import SourceOptions
from schemas.errors import UserError
from tests.pipelines.sources.trees import KINDS, images, labelled, plant


class Names(ListedSource):
    """A tree that is given by its names."""

    def __init__(self, *names: str | Found, unwrap: bool = True, classes: str = ""):
        options = SourceOptions(classes="none") if classes == "none" else SourceOptions()
        super().__init__("names", "train", options, unwrap)
        self.names = names
        self.listed = 0

    def find(self) -> Iterator[Found]:
        self.listed += 1
        for name in self.names:
            yield name if isinstance(name, Found) else Found(name, 7, f"at {name}")

    def read_bytes(self, item: Item) -> bytes:
        return b"no image"


@pytest.mark.parametrize(
    ("names", "unwrap", "expected"),
    [
        (("1.png", "2.png"), True, {"1.png": "all", "2.png": "all"}),
        (("b/1.png", "a/x/2.png"), True, {"b/1.png": "b", "a/x/2.png": "a"}),
        (("w/v/b/1.png", "w/v/a/2.png"), True, {"b/1.png": "b", "a/2.png": "a"}),
        (("w/b/1.png", "w/a/2.png"), False, {"w/b/1.png": "w", "w/a/2.png": "w"}),
        # without the folder around them they would have no class
        (("w/1.png", "w/2.png"), True, {"w/1.png": "w", "w/2.png": "w"}),
    ],
)
def test_folders_around_everything_are_taken_off(
    names: tuple[str, ...], unwrap: bool, expected: dict[str, str]
) -> None:
    assert labelled(Names(*names, unwrap=unwrap)) == expected


def test_a_class_without_an_image_is_refused_and_keeps_its_label() -> None:
    source = Names("a/", "a/1.png", "b/", "c/2.png")
    assert source.classes == ("a", "b", "c")
    empty = {item.key: item for item in source.index()}["b/"]
    assert empty.label == 1
    with pytest.raises(ImageError, match=EMPTY_CLASS):
        source.read(empty)


def test_what_cannot_be_used_is_listed_with_its_reason() -> None:
    source = Names("a/1.png", Found("a/2.png", 5, problem="a link"))
    item = {item.key: item for item in source.index()}["a/2.png"]
    assert item.size == 5
    with pytest.raises(ImageError, match="a link"):
        source.read(item)
    with pytest.raises(ImageError, match=f"more than the {MAX_BYTES} allowed"):
        source.read(Item("a/3.png", 0, MAX_BYTES + 1, "at a/3.png"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "no image file in it"),
        (("a/",), "no image file in it"),
        (("a/1.png", "2.png"), r"class folders and beside them \(2.png\)"),
    ],
)
def test_trees_that_are_no_data(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        _ = Names(*names).classes
    assert "\n" not in str(caught.value)


def test_the_listing_is_made_once_and_does_not_travel() -> None:
    source = Names("a/1.png", "b/2.png")
    first = list(source.index())
    assert list(source.index()) == first
    assert source.listed == 1
    other = pickle.loads(pickle.dumps(source))
    assert list(other.index()) == first
    assert other.listed == 2


def test_memory_does_not_grow_with_the_tree() -> None:
    class Many(ListedSource):
        def find(self) -> Iterator[Found]:
            return (
                Found(f"class{n % 9}/{n:060d}.png", n, "x" * 100) for n in range(int(self.split))
            )

        def read_bytes(self, item: Item) -> bytes:
            raise NotImplementedError

    def peak(count: int) -> int:  # of Python's own objects; SQLite's cache has a fixed size
        tracemalloc.start()
        source = Many("many", str(count), SourceOptions(), unwrap=True)
        assert len(source.classes) == 9
        assert sum(1 for _ in source.index()) == count
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(20_000) < 2 * peak(2_000) + 100_000


def test_no_classes_is_one_class_whatever_lies_where() -> None:
    names = ("w/a/", "w/a/1.png", "w/b/2.png", "w/c/", Found("w/a/3.png", 5, problem="a link"))
    usual, none = Names(*names), Names(*names, classes="none")
    assert none.classes == ("all",)
    keys = {item.key for item in usual.index()} - {"c/"}  # no class, no empty one
    assert {item.key for item in none.index()} == keys == {"a/1.png", "b/2.png", "w/a/3.png"}
    assert {item.label for item in none.index()} == {0}
    mixed = Names("a/1.png", "2.png", classes="none")
    assert labelled(mixed) == {"a/1.png": "all", "2.png": "all"}


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_are_remarked_on_until_they_are_no_classes(kind: str, tmp_path: Path) -> None:
    descriptor = plant(tmp_path, kind, images("00000/1.png", "01000/2.png"))
    source = open_source(descriptor, "train")
    assert source.classes == ("00000", "01000")
    (remark,) = source.remarks()
    assert "00000, 01000" in remark
    one = open_source(f"{descriptor}#classes=none", "train")
    assert labelled(one) == {"00000/1.png": "all", "01000/2.png": "all"}
    assert one.remarks() == ()
    assert open_source(one.descriptor, "train").classes == ("all",)
