"""Caches change where records are read and nothing else; they are made once, and again when they
are not whole.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowtrain.records.cache import (
    NOTE_NAME,
    ROWS_NAME,
    cache_directory,
    check_memory,
    open_records,
)
from flowtrain.records.data import BatchReader, Selection
from flowtrain.records.reader import LatentReader, Records
from schemas.columns import Columns
from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.manifest import Manifest, read_manifest, write_manifest
from schemas.sealed import seal, unseal
from tests.flowtrain.damage import flip_byte, shard_paths, write_pixels
from tests.flowtrain.datasets import write_dataset

SHAPE = (4, 4, 4)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "latents", records=20, shards=3, shape=SHAPE, flips=True)
    return tmp_path / "latents"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def folder_of(dataset: Path, place: Path) -> Path:
    return place / read_manifest(dataset).digest()


def make(dataset: Path, place: Path) -> int:
    """Open the dataset with a cache on disk; how many records were staged for it."""
    told: list[int] = []
    records = open_records(dataset, "disk", place, told.append)
    assert_right(records, dataset)
    return sum(told)


def assert_right(records: Records, dataset: Path) -> None:
    assert_same(batches_of(records), batches_of(LatentReader(dataset)))


def batches_of(records: Records) -> list[Columns]:
    selection = Selection.choose(len(records), holdout=3)
    batches = BatchReader(records, batch_size=6, seed=5, flip="auto", selection=selection)
    return [batches(number) for number in range(8)]


def assert_same(found: list[Columns], expected: list[Columns]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name in one:
            assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
            assert one[name].tobytes() == other[name].tobytes()


def moments(directory: Path, flips: bool) -> Manifest:
    return write_dataset(directory, records=20, shards=3, shape=SHAPE, flips=flips)


def pixels(directory: Path, flips: bool) -> Manifest:
    images = np.random.default_rng(1).integers(0, 256, (20, 5, 5, 3), np.uint8)
    return write_pixels(directory, images, images[:, :, ::-1] if flips else None)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("write", [moments, pixels])
def test_batches_are_the_same_with_every_cache(
    tmp_path: Path, place: Path, write: Callable[[Path, bool], Manifest], flips: bool
):
    write(tmp_path / "data", flips)
    shards = open_records(tmp_path / "data")
    assert isinstance(shards, LatentReader)
    expected = batches_of(shards)
    for cache in ("disk", "ram"):
        told: list[int] = []
        records = open_records(tmp_path / "data", cache, place, told.append)
        assert sum(told) == 20 * (2 if flips else 1)
        assert len(records) == 20
        assert_same(batches_of(records), expected)
        assert_same(batches_of(pickle.loads(pickle.dumps(records))), expected)
    assert len(list(place.iterdir())) == 1  # memory leaves nothing


def test_a_cache_is_made_once_and_needs_no_shards(dataset: Path, place: Path):
    assert make(dataset, place) == 40
    whole = batches_of(LatentReader(dataset))
    for path in shard_paths(dataset):
        path.unlink()
    told: list[int] = []
    assert_same(batches_of(open_records(dataset, "disk", place, told.append)), whole)
    assert told == []
    assert sorted(path.name for path in folder_of(dataset, place).iterdir()) == [
        "lock",
        ROWS_NAME,
        NOTE_NAME,
    ]
    assert not any(path.name.startswith(".") for path in dataset.iterdir())


def test_a_cache_that_cannot_be_written_is_read(
    dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    """Made by somebody else, for all."""
    make(dataset, place)
    monkeypatch.setattr("flowtrain.records.cache.locked", None)
    assert make(dataset, place) == 0


def test_the_note_says_what_the_rows_are(dataset: Path, place: Path):
    make(dataset, place)
    folder = folder_of(dataset, place)
    note = json.loads(unseal((folder / NOTE_NAME).read_bytes()))
    assert note["dataset"] == folder.name
    assert note["fields"] == {"mean": ["float16", [4, 4, 4]], "logvar": ["float16", [4, 4, 4]]}
    assert (note["rows"], note["row_bytes"]) == (40, 260)
    assert note["sha256"] == sha256_file(folder / ROWS_NAME)


def truncate(folder: Path) -> None:
    """With the time of change put back: the size alone tells."""
    status = (folder / ROWS_NAME).stat()
    os.truncate(folder / ROWS_NAME, 100)
    os.utime(folder / ROWS_NAME, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(folder: Path) -> None:
    with open(folder / ROWS_NAME, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def renote(folder: Path, **changes: object) -> None:
    note = json.loads(unseal((folder / NOTE_NAME).read_bytes()))
    (folder / NOTE_NAME).write_text(seal(json.dumps(note | changes, indent=2) + "\n"))


def flip_note(folder: Path) -> None:
    text = (folder / NOTE_NAME).read_text()
    (folder / NOTE_NAME).write_text(text.replace('"rows": 40', '"rows": 41'))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "rows truncated": truncate,
    "rows flipped": flip,
    "rows missing": lambda folder: (folder / ROWS_NAME).unlink(),
    "note missing": lambda folder: (folder / NOTE_NAME).unlink(),
    "note empty": lambda folder: (folder / NOTE_NAME).write_bytes(b""),
    "note flipped": flip_note,
    "note of another layout": lambda folder: renote(folder, version=0),
    "note of another dataset": lambda folder: renote(folder, dataset="0" * 64),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_cache_that_is_not_whole_is_made_again(dataset: Path, place: Path, what: str):
    make(dataset, place)
    DAMAGE[what](folder_of(dataset, place))
    assert make(dataset, place) == 40
    assert make(dataset, place) == 0


def test_the_cache_of_another_dataset_is_made_again(dataset: Path, place: Path, tmp_path: Path):
    """Of the same size and layout: only the digest in the note tells."""
    other = tmp_path / "other"
    write_dataset(other, records=20, shards=2, shape=SHAPE, flips=True)
    write_manifest(other, read_manifest(other).model_copy(update={"seed": 9}))
    make(other, place)
    shutil.copytree(folder_of(other, place), folder_of(dataset, place))
    assert make(dataset, place) == 40
    assert make(other, place) == 0


def test_a_copy_of_a_cache_is_trusted_once_its_bytes_are_seen_to_be_right(
    dataset: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make(dataset, place)
    shutil.copytree(place, tmp_path / "copy", copy_function=shutil.copyfile)
    read = []
    monkeypatch.setattr(
        "flowtrain.records.cache.sha256_file", lambda path: read.append(path) or sha256_file(path)
    )
    assert make(dataset, tmp_path / "copy") == 0
    assert len(read) == 1
    assert make(dataset, tmp_path / "copy") == 0
    assert len(read) == 1


def test_a_damaged_shard_is_named_before_training_and_leaves_nothing(dataset: Path, place: Path):
    path = flip_byte(dataset, 9, mirrored=True)
    for cache in ("disk", "ram"):
        with pytest.raises(
            UserError, match=rf"{path.name}: the shard is damaged .*on_corrupt=skip$"
        ):
            open_records(dataset, cache, place)
    assert [file.name for file in folder_of(dataset, place).iterdir()] == ["lock"]


TRUNCATED = """
import os, sys
from pathlib import Path
import numpy as np
from flowtrain.records.cache import ROWS_NAME, open_records
from schemas.errors import UserError
data, place = map(Path, sys.argv[1:])
records = open_records(data, "disk", place)
(path,) = place.glob("*/" + ROWS_NAME)
os.truncate(path, 0)
try:
    records.gather(np.arange(20), np.zeros(20, bool))
except UserError as error:
    print(error)
"""


def test_a_map_that_is_truncated_under_us_is_one_line_and_no_dead_process(
    dataset: Path, place: Path
):
    """To touch what is gone would be a SIGBUS."""
    make(dataset, place)
    command = [sys.executable, "-c", TRUNCATED, str(dataset), str(place)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result
    assert result.stdout.strip() == (
        f"{folder_of(dataset, place) / ROWS_NAME}: has 0 bytes, not 10400: something else has "
        "changed it; repeat the command, which makes it again"
    )
    assert make(dataset, place) == 40


def test_a_map_that_is_replaced_or_deleted_is_read_on(dataset: Path, place: Path):
    make(dataset, place)
    records = open_records(dataset, "disk", place)
    shutil.rmtree(place)
    assert_right(records, dataset)


STAGE = """
import sys
from pathlib import Path
from flowtrain.records import rows
from flowtrain.records.cache import open_records
rows._CHUNK = 1
def progress(records):
    print(records, flush=True)
    sys.stdin.readline()
open_records(Path(sys.argv[1]), "disk", Path(sys.argv[2]), progress)
"""


def start(dataset: Path, place: Path) -> subprocess.Popen[str]:
    """A process that stages a record for each line it is given."""
    command = [sys.executable, "-c", STAGE, str(dataset), str(place)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_killed_while_staging_and_repeated(dataset: Path, place: Path):
    process = start(dataset, place)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    names = [path.name for path in folder_of(dataset, place).iterdir()]
    assert any(name.endswith(".tmp") for name in names)
    assert ROWS_NAME not in names
    assert make(dataset, place) == 40
    assert sorted(path.name for path in folder_of(dataset, place).iterdir()) == [
        "lock",
        ROWS_NAME,
        NOTE_NAME,
    ]


def test_of_two_at_once_one_stages_and_the_other_waits(dataset: Path, place: Path):
    first = start(dataset, place)
    assert first.stdout is not None
    first.stdout.readline()
    second = start(dataset, place)
    assert second.stderr is not None
    folder = folder_of(dataset, place)
    assert second.stderr.readline() == f"waiting for another command that is at work in {folder}\n"
    # no more input: no more waiting
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [len(out.split()) for out, _ in outputs] == [39, 0]
    assert make(dataset, place) == 0


def test_no_room_on_the_disk_is_one_line(dataset: Path, small_disk: Callable[[str], Path]):
    disk = small_disk("size=8k")  # less than 40 rows of 260 bytes
    with pytest.raises(UserError) as caught:
        open_records(dataset, "disk", disk)
    assert str(caught.value) == (
        f"--cache disk needs 10,400 bytes in {folder_of(dataset, disk)}, and 8,192 bytes are free; "
        "make room, give another place with --cache-dir, or use --cache none"
    )


def test_a_disk_that_fills_up_meanwhile_is_one_line(
    dataset: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    disk = small_disk("size=8k")
    monkeypatch.setattr("flowtrain.records.cache.check_disk", lambda *arguments: None)
    with pytest.raises(
        UserError,
        match=r"--cache disk cannot use .*\(No space left on device\); mend that, give another",
    ):
        open_records(dataset, "disk", disk)
    assert [path.name for path in folder_of(dataset, disk).iterdir()] == ["lock"]


def test_a_place_that_is_a_file_is_one_line(dataset: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError,
        match=r"--cache disk cannot use .*file.* \(Not a directory\); mend that, give another",
    ):
        open_records(dataset, "disk", tmp_path / "file")


def test_no_room_in_memory_is_one_line(dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    check_memory(800, 1000)
    with pytest.raises(UserError) as caught:
        check_memory(21_000_000_000, 16_000_000_000)
    assert str(caught.value) == (
        "--cache ram needs 21 GB of memory, and 16 GB are available, a fifth of it for training "
        "itself; use --cache disk or --cache none"
    )
    monkeypatch.setattr("flowtrain.records.cache.available_memory", lambda: 12_999)
    with pytest.raises(UserError, match="--cache ram needs 10,400 bytes of memory"):
        open_records(dataset, "ram", place)
    monkeypatch.setattr("flowtrain.records.cache.available_memory", lambda: 13_000)
    open_records(dataset, "ram", place)


def test_caches_go_to_the_cache_directory_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "flowtrain" / "datasets"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_directory() == tmp_path / ".cache" / "flowtrain" / "datasets"
    assert cache_directory(tmp_path / "mine") == tmp_path / "mine"


def test_a_dataset_of_nothing_is_refused(dataset: Path, place: Path):
    manifest = read_manifest(dataset)
    counts = manifest.counts.model_copy(update={"source": 0, "written": 0})
    empty = [shard.model_copy(update={"records": 0}) for shard in manifest.shards]
    write_manifest(dataset, manifest.model_copy(update={"counts": counts, "shards": tuple(empty)}))
    for cache in ("none", "disk", "ram"):
        with pytest.raises(
            UserError, match="latents: the dataset holds no records; use another one"
        ):
            open_records(dataset, cache, place)
