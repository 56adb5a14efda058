import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.storage.directory import GONE, STAGING, WORK, Directory, open_directory


def test_files_come_and_go(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "new"))
    assert directory.names() == []
    directory.write("a/b.txt", "0123456789")
    assert directory.read("a/b.txt") == b"0123456789"
    assert directory.read("a/b.txt", 3, 4) == b"3456"
    assert directory.names("a") == ["b.txt"]
    directory.remove("a/b.txt")
    directory.remove("a/b.txt")
    assert directory.names("a") == []


def test_staged_file_appears_when_published(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    with directory.staging() as one, directory.staging() as other:
        assert one != other
        (one / "shard").write_bytes(b"content")
        assert not directory.exists("a/shard")
        directory.publish(one / "shard", "a/shard")
    assert directory.read("a/shard") == b"content"
    assert directory.names(STAGING) == []


def test_file_is_created_once(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    directory.create("a/b", "first")
    with pytest.raises(FileExistsError):
        directory.create("a/b", "second")
    assert directory.read("a/b") == b"first"


def test_matches_wants_size_and_checksum(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    (tmp_path / "a").write_bytes(b"abc")
    digest = sha256_file(tmp_path / "a")
    assert directory.matches("a", 3, digest)
    assert not directory.matches("a", 4, digest)
    assert not directory.matches("a", 3, "0" * 64)
    assert not directory.matches("b", 3, digest)


def test_sweep_takes_half_written_files_only(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    directory.write("keep", "x")
    directory.write(f"{WORK}/keep", "x")
    for name in (".manifest.json.7.tmp", f"{WORK}/.index.jsonl.7.tmp"):
        (tmp_path / name).write_text("half")
    directory.write(f"{STAGING}/1/shard", "half")
    (tmp_path / f"{GONE}1/done").mkdir(parents=True)
    directory.sweep()
    assert not directory.exists(f"{GONE}1")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        ".work/keep",
        "keep",
    ]


def test_work_is_cleared_away_while_another_command_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes at the worst moment: its lock is there before the first of our files is
    deleted.
    """
    directory = Directory(str(tmp_path))
    directory.write(f"{WORK}/done/00000.json", "{}")
    directory.write(f"{WORK}/lock", "")
    real_rmtree = shutil.rmtree

    def rmtree(path: Path, **options: Any) -> None:
        directory.write(f"{WORK}/lock", "theirs")
        real_rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    directory.clear_work()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        WORK,
        f"{WORK}/lock",
    ]
    assert directory.read(f"{WORK}/lock") == b"theirs"


def test_other_file_systems_and_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError,
        match="hdfs://host/data: no such kind of storage; known are local paths, s3:// and gs",
    ):
        open_directory("hdfs://host/data")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        open_directory(str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    assert open_directory("a/b").root == str(tmp_path / "a/b")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("s3:/bucket/set", "did you mean s3://bucket/set[?]"),
        ("gs:bucket/set", "did you mean gs://bucket/set[?]"),
        ("/dev/null/set", "^/dev/null is a file; give a directory"),
        ("x" * 300, "File name too long[)]; mend that or choose another directory"),
    ],
)
def test_names_that_cannot_be_meant_or_made_are_refused(where: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_directory(where)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_room_is_asked_for_where_there_is_none(kind: int) -> None:
    directory = Directory("/data/set")
    assert "make room" in directory.trouble(OSError(kind, os.strerror(kind)))
    assert "make room" in directory.trouble(OSError(f"write() failed: {os.strerror(kind)}"))
    assert "make room" not in directory.trouble(OSError(errno.EROFS, os.strerror(errno.EROFS)))


def test_colons_may_be_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run:1", "./s3:x", "a/zip:x"):
        assert open_directory(name).root == str(tmp_path / name)
