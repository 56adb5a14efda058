"""Folders: their classes, links, names and permissions."""

import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from pipelines.images import ImageError
from pipelines.sources import open_source
from schemas.errors import UserError


def put(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "PNG")


def test_sub_folders_are_classes_sorted_by_name(tmp_path: Path) -> None:
    for name in (
        "zebra/1.PNG",
        "ant/deep/er/2.JpEg",
        "ant/0.png",
        "bee/notes.txt",
        ".hidden/3.png",
        "ant/.4.png",
    ):
        put(tmp_path / name)
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("ant", "bee", "zebra")
    items = sorted(source.index(), key=lambda item: item.key)
    assert [(item.key, item.label) for item in items] == [
        ("ant/0.png", 0),
        ("ant/deep/er/2.JpEg", 0),
        ("bee/", 1),
        ("zebra/1.PNG", 2),
    ]
    with pytest.raises(ImageError, match="a class folder with no image in it"):
        source.read(items.pop(2))
    assert all(item.size == (tmp_path / item.key).stat().st_size for item in items)
    assert all(item.modified == (tmp_path / item.key).stat().st_mtime_ns for item in items)
    assert source.read(items[0]).pixels.shape == (4, 4, 3)


def test_flat_folder_is_one_class(tmp_path: Path) -> None:
    put(tmp_path / "b.png")
    put(tmp_path / "a.png")
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("all",)
    assert {(item.key, item.label) for item in source.index()} == {("a.png", 0), ("b.png", 0)}


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "cat/a.png")
    with pytest.raises(UserError, match=r"beside them \(a.png\)"):
        list(open_source(str(tmp_path), "train").index())


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "cat/a.png")
    put(tmp_path.parent / f"{tmp_path.name}-elsewhere/b.png")
    (tmp_path / "cat/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dog").symlink_to(
        tmp_path.parent / f"{tmp_path.name}-elsewhere", target_is_directory=True
    )
    (tmp_path / "cat/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat/itself.png").symlink_to(tmp_path / "cat/itself.png")
    os.mkfifo(tmp_path / "cat/pipe.png")
    source = open_source(str(tmp_path), "train")
    items = {item.key: item for item in source.index()}
    assert items.keys() == {
        "cat/a.png",
        "dog/b.png",
        "cat/broken.png",
        "cat/itself.png",
        "cat/pipe.png",
    }
    for name, reason in (
        ("broken", "to nothing"),
        ("itself", "back to itself"),
        ("pipe", "pipe or socket"),
    ):
        with pytest.raises(ImageError, match=reason):
            source.read(items[f"cat/{name}.png"])


def test_names_in_unicode_stay_as_they_are(tmp_path: Path) -> None:
    names = {unicodedata.normalize(form, "Žába/jiří 日本.png") for form in ("NFC", "NFD")}
    for name in names:
        put(tmp_path / name)
    source = open_source(str(tmp_path), "train")
    assert {item.key for item in source.index()} == names
    assert len(source.classes) == len({item.label for item in source.index()}) == 2
    assert all(source.read(item).pixels.shape == (4, 4, 3) for item in source.index())


def test_file_without_permission_is_rejected_and_a_folder_without_stops(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/a.png"):
        put(tmp_path / name)
    (tmp_path / "cat/b.png").chmod(0)
    code = """
import os, sys
from pipelines.images import ImageError
from pipelines.sources import open_source
open_source(sys.argv[1], "train").classes  # imports all there is to import
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
source = open_source(sys.argv[1], "train")
for item in sorted(source.index(), key=lambda item: item.key):
    try:
        print(item.key, source.read(item).pixels.shape)
    except ImageError as error:
        print(item.key, error.reason, error.exception)
"""
    for path in (tmp_path, *tmp_path.parents[: len(tmp_path.parents) - 2]):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o055)

    def listed() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
        )

    assert listed().stdout.splitlines() == [
        "cat/a.png (4, 4, 3)",
        "cat/b.png no permission to read it PermissionError",
        "dog/a.png (4, 4, 3)",
    ]
    (tmp_path / "dog").chmod(0)
    refused = listed()
    (tmp_path / "dog").chmod(0o755)
    assert refused.returncode == 1
    assert f"UserError: {tmp_path}/dog: cannot be listed (Permission denied)" in refused.stderr


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
    first, second = sorted(source.index(), key=lambda item: item.key)
    with pytest.raises(ImageError):
        source.read(second)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(first)


def test_descriptor_opens_the_source_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in/cat/a.png")
    monkeypatch.chdir(tmp_path)
    source = open_source("in", "train")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(open_source(source.descriptor, "train")))
    assert list(again.index()) == list(open_source(str(tmp_path / "in"), "train").index())
    assert len(pickle.dumps(again)) < 500  # the listing stays behind


def test_file_and_empty_folder_are_no_sources(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        open_source(str(tmp_path / "file"), "train")
    with pytest.raises(UserError, match="no image file in it"):
        list(open_source(str(tmp_path), "train").index())
