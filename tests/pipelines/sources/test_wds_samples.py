"""Members of a shard as parts of samples."""

import io
import tarfile
from pathlib import Path

import pytest

from pipelines.sources.options import SourceOptions
from pipelines.sources.wds_samples import Part, parts
from tests.pipelines.sources.miniature import add


def write(path: Path, **members: bytes) -> str:
    """A tar; `__` in a name stands for a slash and `_` for a dot."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add(archive, name.replace("__", "/").replace("_", "."), data)
    return str(path)


def found(path: str, **options: str) -> list[tuple[str, str, str, str | None]]:
    said = SourceOptions(**options)  # pyright: ignore[reportArgumentType]
    return [(one.sample, one.extension, one.kind, one.label) for one in parts(path, said)]


def test_a_sample_is_what_is_before_the_first_dot_of_the_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", a_b__1_jpg=b"x", a_b__1_seg_PNG=b"xy", a_b__1_cls=b" 3\n")
    assert found(path) == [
        ("a.b/1", "jpg", "image", None),
        ("a.b/1", "seg.png", "image", None),
        ("a.b/1", "cls", "label", "3"),
    ]
    image = next(parts(path, SourceOptions()))
    assert image == Part("a.b/1", "jpg", "image", 1, 512)


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b'{"label": 7, "x": 1}', "7"),
        (b'{"label": "cat"}', "cat"),
        (b'{"label": true}', None),
        (b'{"label": [1]}', None),
        (b'{"label": 0.5}', None),
        (b'{"other": 7}', None),
        (b"[7]", None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b'{"label": 1, "x": "' + b"x" * (1 << 20) + b'"}', None),
    ],
)
def test_a_label_of_a_json_file(tmp_path: Path, data: bytes, label: str | None) -> None:
    assert found(write(tmp_path / "x.tar", a_json=data)) == [("a", "json", "label", label)]


def test_which_files_tell_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", a_cls=b"3", a_jpg=b"x", a_json=b'{"label": 4, "id": 5}')

    def told(**options: str) -> list[tuple[str, str, str | None]]:
        return [one[1:] for one in found(path, **options) if one[1] != "jpg"]

    assert told() == [("cls", "label", "3"), ("json", "other", None)]
    assert told(label="id") == [("cls", "other", None), ("json", "label", "5")]
    assert told(label="cls") == [("cls", "label", "3"), ("json", "other", None)]
    assert told(classes="none") == [("cls", "other", None), ("json", "other", None)]


def test_what_is_no_file_of_a_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("__MACOSX/a.jpg", ".a.jpg", "readme", "../b.jpg", "./c.jpg"):
            add(archive, name, b"x")
        link = tarfile.TarInfo("d.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "c.jpg"
        archive.addfile(link, io.BytesIO())
    listed = [
        (one.sample, one.kind, one.problem)
        for one in parts(str(tmp_path / "x.tar"), SourceOptions())
    ]
    assert listed == [
        ("readme", "other", ""),
        ("../b", "image", "its name leads out of the archive"),
        ("c", "image", ""),
        ("d", "image", "a symbolic link, not a file"),
    ]
