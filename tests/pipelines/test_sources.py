import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.images import ImageError
from pipelines.sources import open_source
from schemas.errors import UserError


def put(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "PNG")


def test_sub_folders_are_classes_sorted_by_name(tmp_path: Path) -> None:
    for name in ("zebra/1.PNG", "ant/deep/er/2.JpEg", "ant/0.png", "bee/notes.txt", ".hidden/3.png", "ant/.4.png"):
        put(tmp_path / name)
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("ant", "zebra")
    assert [(item.key, item.label) for item in source.index()] == [
        ("ant/0.png", 0),
        ("ant/deep/er/2.JpEg", 0),
        ("zebra/1.PNG", 1),
    ]
    assert all(item.size == (tmp_path / item.key).stat().st_size for item in source.index())
    assert all(item.modified == (tmp_path / item.key).stat().st_mtime_ns for item in source.index())
    assert source.read(next(source.index())).pixels.shape == (4, 4, 3)


def test_flat_folder_is_one_class(tmp_path: Path) -> None:
    put(tmp_path / "b.png")
    put(tmp_path / "a.png")
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("all",)
    assert [(item.key, item.label) for item in source.index()] == [("a.png", 0), ("b.png", 0)]


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "cat/a.png")
    with pytest.raises(UserError, match=r"beside them \(a.png\)"):
        list(open_source(str(tmp_path), "train").index())


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "cat/a.png")
    put(tmp_path.parent / f"{tmp_path.name}-elsewhere/b.png")
    (tmp_path / "cat/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dog").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere", target_is_directory=True)
    (tmp_path / "cat/broken.png").symlink_to(tmp_path / "nowhere.png")
    assert [item.key for item in open_source(str(tmp_path), "train").index()] == ["cat/a.png", "dog/b.png"]


def test_undecodable_file_name_has_a_utf8_key_and_can_be_read(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path / "cat")
    os.mkdir(directory)  # noqa: PTH102  (a name of bytes)
    put(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(directory, b"\xff.png"))  # noqa: PTH104, PTH118
    source = open_source(str(tmp_path), "train")
    (item,) = source.index()
    assert item.key == "cat/\\xff.png"
    item.key.encode()
    assert source.read(item).pixels.shape == (4, 4, 3)


def test_bad_image_and_unreadable_file_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    source = open_source(str(tmp_path), "train")
    first, second = source.index()
    with pytest.raises(ImageError):
        source.read(second)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(first)


def test_descriptor_opens_the_source_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/cat/a.png")
    monkeypatch.chdir(tmp_path)
    source = open_source("in", "train")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(open_source(source.descriptor, "train")))
    assert list(again.index()) == list(open_source(str(tmp_path / "in"), "train").index())
    assert len(pickle.dumps(again)) < 500  # the listing stays behind


def test_digits_hold_both_splits_and_ten_classes() -> None:
    train, test = open_source("embedded:digits", "train"), open_source("embedded:digits", "test")
    assert (len(list(train.index())), len(list(test.index()))) == (4000, 1000)
    assert train.classes == tuple("0123456789")
    item = list(train.index())[12]
    assert item.key == "train/00012"
    image = train.read(item).pixels
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert set(np.bincount([item.label for item in train.index()])) == {400}


@pytest.mark.parametrize(
    ("descriptor", "split", "message"),
    [
        ("no/such/folder", "train", "no such folder"),
        ("tar:x.tar", "train", "unknown kind of source 'tar:'; known are a folder of images and embedded:NAME"),
        ("gs://bucket/x", "train", "unknown kind of source 'gs:'"),
        ("embedded:cats", "train", "no such embedded source; known: digits"),
        ("embedded:digits", "validation", "no split 'validation'; it has train and test"),
    ],
)
def test_what_is_not_there_is_named(descriptor: str, split: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(descriptor, split)
    assert message in str(caught.value)


def test_file_and_empty_folder_are_no_sources(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        open_source(str(tmp_path / "file"), "train")
    with pytest.raises(UserError, match="no image file in it"):
        list(open_source(str(tmp_path), "train").index())
