"""One interface: whatever is asked of a store, a disk and both vendors answer alike."""

import hashlib
import time
from pathlib import Path

import pytest

from schemas.files import sha256_file
from schemas.storage.store import WORK
from tests.schemas.storage.conftest import Place

DATA = bytes(range(256)) * 40


def test_files_are_written_read_listed_and_deleted(place: Place) -> None:
    store, root = place.store, place.root
    names = {"a", "b/c d?#%.txt", "b/é/f"}
    for name in names:
        store.write(f"{root}/{name}", name.encode())
    store.write(f"{root}/a", b"again")
    listed = {entry.name: entry.size for entry in store.entries(root)}
    assert listed == {"a": 5, "b/c d?#%.txt": 12, "b/é/f": 6}
    assert store.names(root) == ["a", "b"]
    assert store.names(f"{root}/b") == ["c d?#%.txt", "é"]
    assert store.names(f"{root}/nowhere") == []
    assert store.read(f"{root}/a") == b"again"
    for _ in range(2):
        store.delete(f"{root}/a")
        assert not store.exists(f"{root}/a")
    assert store.exists(f"{root}/b/é/f")


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, -1, DATA),
        (100, -1, DATA[100:]),
        (100, 50, DATA[100:150]),
        (len(DATA) - 3, 50, DATA[-3:]),
        (len(DATA), 5, b""),
        (len(DATA) + 9, -1, b""),
        (7, 0, b""),
    ],
)
def test_a_range_ends_where_the_file_ends(
    place: Place, offset: int, length: int, expected: bytes
) -> None:
    place.store.write(f"{place.root}/file", DATA)
    assert place.store.read(f"{place.root}/file", offset, length) == expected


def test_what_is_not_there_is_a_file_not_found(place: Place, tmp_path: Path) -> None:
    missing = f"{place.root}/missing"
    with pytest.raises(FileNotFoundError):
        place.store.read(missing)
    with pytest.raises(FileNotFoundError):
        place.store.facts(missing)
    with pytest.raises(FileNotFoundError):
        place.store.download(missing, tmp_path / "copy")
    assert not place.store.exists(missing)


def test_facts_tell_size_and_time(place: Place) -> None:
    before = time.time()
    place.store.write(f"{place.root}/file", DATA)
    facts = place.store.facts(f"{place.root}/file")
    assert (facts.size, facts.sha256) == (len(DATA), None)
    assert abs(facts.modified / 1e9 - before) < 60  # servers round, and clocks differ


def test_a_published_file_has_left_its_checksum_where_that_saves_reading(place: Place) -> None:
    store, url = place.store, f"{place.root}/deep/shard"
    with store.staging(place.root) as folder, store.staging(place.root) as other:
        assert folder != other
        (folder / "half").write_bytes(DATA)
        digest = sha256_file(folder / "half")
        assert not store.exists(url)
        store.publish(url, folder / "half")
    assert not folder.exists()
    assert store.read(url) == DATA
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert store.facts(url).sha256 == (None if place.server is None else digest)


def test_a_file_is_created_once(place: Place) -> None:
    if place.server is not None and place.server.scheme == "gs":
        pytest.skip("the emulator knows no conditional writes")
    place.store.create(f"{place.root}/deep/one", b"first")
    with pytest.raises(FileExistsError):
        place.store.create(f"{place.root}/deep/one", b"second")
    assert place.store.read(f"{place.root}/deep/one") == b"first"


def test_copies_on_the_local_disk(place: Place, tmp_path: Path) -> None:
    store, url = place.store, f"{place.root}/deep/shard.bin"
    store.write(url, DATA)
    store.download(url, tmp_path / "downloaded")
    assert (tmp_path / "downloaded").read_bytes() == DATA
    with store.local_copy(url) as copy:
        assert copy.name == "shard.bin"
        assert copy.read_bytes() == DATA
    assert copy.exists() == (place.server is None)  # a local file is its own copy, and stays
    assert store.exists(url)


def test_work_is_cleared_and_nothing_else(place: Place) -> None:
    store, root = place.store, place.root
    kept = [f"{root}/manifest.json", f"{root}/{WORK}er/file"]
    for url in kept:
        store.write(url, b"kept")
    for number in range(20):
        store.write(f"{root}/{WORK}/digest/done/{number}.json", b"{}")
    store.write(f"{root}/{WORK}/digest/index.jsonl", b"[]")
    if place.server is not None:
        place.server.proxy.reset()
    store.clear_work(root)
    assert sorted(f"{root}/{entry.name}" for entry in store.entries(root)) == sorted(kept)
    if place.server is not None:  # by the index another command sees that there is nothing to do
        deleted = [path for method, path in place.server.proxy.log if method == "DELETE"]
        assert len(deleted) == 21
        assert "index.jsonl" in deleted[0]


def test_a_disk_is_locked_and_looked_at_often(place: Place) -> None:
    assert place.store.locks == (place.server is None)
    assert (place.store.patience < 1) == (place.server is None)


def test_a_root_is_looked_for(place: Place) -> None:
    store, root = place.store, place.root
    assert store.obstacle(f"{root}/new/folder") is None
    store.write(f"{root}/file", b"")
    if place.server is None:
        assert store.obstacle(f"{root}/file/below") == Path(root, "file")
    else:
        assert store.obstacle(f"{root}/file/below") is None  # names of objects may be prefixes
        with pytest.raises(FileNotFoundError):
            store.obstacle(f"{place.server.scheme}://nobody-has-this/data")


def test_trouble_tells_the_store_from_the_disk_that_files_are_staged_on(place: Place) -> None:
    theirs = place.store.trouble(place.root, OSError(5, "fails", f"{place.root}/shard"))
    ours = place.store.trouble(place.root, OSError(28, "No space left on device", "/elsewhere"))
    if place.server is None:
        assert theirs == f"cannot write {place.root} (fails); " + (
            "mend that or choose another directory, then repeat"
        )
        assert ours.endswith("; make room and repeat the command")
    else:
        assert theirs == f"cannot use {place.root}: fails; mend it and repeat the command"
        assert "make room or set TMPDIR" in ours
