"""Items that cannot be used keep the reason on their way to whoever reads them."""

import pickle
from pathlib import Path

import pytest

from pipelines.images import ImageError
from pipelines.sources.base import Item
from pipelines.sources.refused import check_usable, refused


def test_the_reason_comes_back_and_the_rest_is_as_told() -> None:
    item = refused("cat/1.png", "a symbolic link: to nothing", 7, modified=9, label=2, group="g")
    assert (item.key, item.size, item.modified) == ("cat/1.png", 7, 9)
    assert (item.label, item.group) == (2, "g")
    with pytest.raises(ImageError) as caught:
        check_usable(pickle.loads(pickle.dumps(item)))
    assert caught.value.reason == "a symbolic link: to nothing"


def test_its_location_is_no_path() -> None:
    with pytest.raises(ValueError, match="null"):
        Path(refused("a", "no reason").location).read_bytes()


@pytest.mark.parametrize("location", ["", "a symbolic link", "cat/1.png", "12:345"])
def test_other_items_are_usable(location: str) -> None:
    check_usable(Item("cat/1.png", 0, 7, location))
