from pathlib import Path

import pytest

from schemas.storage import connection, paths
from schemas.storage.local import LocalStore


def test_names_are_joined_and_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths.absolute("a/b") == str(tmp_path / "a/b")
    assert paths.absolute("~/a") == "/home/someone/a"
    assert paths.absolute("s3://bucket/a//") == "s3://bucket/a"
    assert paths.join("/root", "a/b") == "/root/a/b"
    assert paths.join("s3://bucket/root/", "a/b ?#") == "s3://bucket/root/a/b ?#"


def test_a_path_leads_to_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local paths connect to nothing."""
    schemes: list[str] = []
    remote = LocalStore()

    def connect(scheme: str) -> LocalStore:
        schemes.append(scheme)
        return remote

    monkeypatch.setattr(connection, "_connect", connect)
    assert paths.store_of("/data/a") is not remote
    assert schemes == []
    assert paths.store_of("gs://bucket/a") is remote
    assert schemes == ["gs"]


def test_local_files(tmp_path: Path) -> None:
    where = str(tmp_path / "deep/file")
    paths.write(where, b"0123456789")
    assert paths.read(where) == b"0123456789"
    assert paths.read(where, 3, 4) == b"3456"
    facts = paths.facts(where)
    assert (facts.size, facts.modified) == (10, Path(where).stat().st_mtime_ns)
    paths.download(where, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    with paths.local_copy(where) as copy:
        assert copy == Path(where)
    assert {entry.name for entry in paths.entries(str(tmp_path))} == {"deep/file", "copy"}
    paths.delete(where)
    assert not paths.exists(where)
    assert paths.exists(str(tmp_path / "deep"))


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "one/two/file").touch()
    (tmp_path / "one/two/back").symlink_to(tmp_path / "one")
    (tmp_path / "linked").symlink_to(tmp_path / "one")
    found = sorted(entry.name for entry in paths.entries(str(tmp_path)))
    assert found == ["linked/two/file", "one/two/file"]
