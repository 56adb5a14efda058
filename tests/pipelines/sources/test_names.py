import pytest

from pipelines.sources.names import is_hidden, is_image, leads_out, plain, readable


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
