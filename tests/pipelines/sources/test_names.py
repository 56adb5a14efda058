import shutil
from pathlib import Path

import pytest

from pipelines.sources import open_source
from pipelines.sources.names import is_hidden, is_image, leads_out, plain, readable
from tests.pipelines.sources.miniature import png


@pytest.mark.parametrize(
    "name", ["a.jpg", "x/y.JPEG", "a.b.png", "x.d/a.WebP", "a.tiff", "ž/日本.gif"]
)
def test_images_by_extension(name: str) -> None:
    assert is_image(name)


@pytest.mark.parametrize("name", ["jpg", "a.txt", "a.jpg.txt", "x.jpg/readme", "a.jpg/", ""])
def test_other_files(name: str) -> None:
    assert not is_image(name)


def test_hidden() -> None:
    assert all(map(is_hidden, (".a.png", "x/.y/a.png", "__MACOSX/x/a.png", "./x/.a.png")))
    assert not any(map(is_hidden, ("a.png", "./a.png", "../a.png", "x.y/a.b.png")))


def test_members_names() -> None:
    assert [plain(name) for name in ("./a//b.png", "a/./b/", "/a/b", "./", "../a")] == [
        "a/b.png",
        "a/b/",
        "/a/b",
        "",
        "../a",
    ]
    assert all(map(leads_out, ("../a", "a/../../b", "/a", "a/..")))
    assert not any(map(leads_out, ("a/b", "a/..b", "..a")))


def test_readable_names_are_utf8_on_one_line() -> None:
    assert readable("a\udcff\nb\r日") == "a\\xff\\nb\\r日"
    readable("\udc80").encode()


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_folders_of_systems_are_no_classes_of_any_source(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    systems = ("__MACOSX", "lost+found", "$RECYCLE.BIN", "@eaDir", "#recycle", "~snapshot")
    for folder in ("cat", "dog", *systems, "cat/@eaDir", "cat/__macosx"):
        (root / folder).mkdir(parents=True)
        (root / folder / "1.png").write_bytes(png())
    (root / "System Volume Information").mkdir()
    shutil.make_archive(str(tmp_path / "tree"), "zip", root)
    shutil.make_archive(str(tmp_path / "tree"), "tar", root)
    descriptor = {"folder": str(root)}.get(kind, f"{kind}:{tmp_path / 'tree'}.{kind}")
    source = open_source(descriptor, "train")
    assert source.classes == ("cat", "dog")
    assert sorted(item.key for item in source.index()) == ["cat/1.png", "dog/1.png"]
