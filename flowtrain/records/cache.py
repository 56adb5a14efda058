"""Records for training: from shards, or from rows made once, on disk or in memory.

On disk the rows are one file, mapped into memory, in a folder named after the digest of the
dataset. Whoever wants it first makes it, from shards whose checksums are compared; other commands
wait for that. The file appears whole under its name, and then a note of what it is. A file is used
again when its size and time of change are those of the note; when only the time differs (a copy, a
restored backup) its SHA-256 decides; otherwise it is made again. So nothing is read through at the
start of each run, and bytes that the disk loses later, without a write, are the disk's to notice.
"""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowtrain.records.memory import available_memory
from flowtrain.records.reader import Index, LatentReader, Records, read_full_manifest
from flowtrain.records.rows import RowReader, cache_bytes, read_rows, row_count, row_dtype
from schemas.columns import Columns
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file, write_atomic, written_whole
from schemas.json_text import parse_object
from schemas.locked import locked
from schemas.manifest import Manifest
from schemas.sealed import seal, unseal
from schemas.storage.user_cache import user_cache_folder

Cache = Literal["none", "disk", "ram"]
RecordProgress = Callable[[int], object]  # is told a number of further records

ROWS_NAME = "rows.bin"
NOTE_NAME = "rows.json"
_LOCK_NAME = "lock"
_VERSION = 1  # of the layout of a row
_MEMORY_SHARE = 0.8  # of what is available; the rest is for training


def cache_directory(given: Path | None = None) -> Path:
    """The folder of staged datasets: as given, or in the user's cache folder."""
    return user_cache_folder() / "datasets" if given is None else given


def open_records(
    directory: Path,
    cache: Cache = "none",
    cache_dir: Path | None = None,
    progress: RecordProgress = lambda records: None,
) -> Records:
    """Open a finished dataset for training. The batches are the same with each kind of cache.

    Args:
        directory: what `flowtrain preprocess` wrote.
        cache: "none" reads single records from the shards; "disk" makes a file of rows, once, and
            maps it; "ram" holds the rows in memory, of each process its own.
        cache_dir: where the files of rows are kept; default: `cache_directory()`.
        progress: told numbers of records while rows are made, in all
            `flowtrain.records.rows.row_count(manifest)`.

    Raises:
        UserError: the dataset is not whole, a shard is damaged, or there is no room for the rows.
    """
    return _OPEN[cache](directory, cache_directory(cache_dir), progress)


def _open_shards(directory: Path, cache_dir: Path, progress: RecordProgress) -> Records:
    return LatentReader(directory)


def _open_in_memory(directory: Path, cache_dir: Path, progress: RecordProgress) -> Records:
    manifest = read_full_manifest(directory)
    check_memory(cache_bytes(manifest), available_memory())
    rows = np.empty(row_count(manifest), row_dtype(manifest.tensors))
    place = 0
    for piece in read_rows(directory, manifest, progress):
        rows[place : place + len(piece)] = piece
        place += len(piece)
    return RowReader(directory, manifest, rows)


def _open_on_disk(directory: Path, cache_dir: Path, progress: RecordProgress) -> Records:
    manifest = read_full_manifest(directory)
    folder = cache_dir / manifest.digest()
    with _reported(folder):
        if not _is_noted(folder, manifest):
            with locked(folder / _LOCK_NAME):  # whoever waited here finds the file made
                if not (_is_noted(folder, manifest) or _is_whole(folder, manifest)):
                    _make(folder, directory, manifest, progress)
        return MappedReader(directory, manifest, folder / ROWS_NAME)


_OPEN: dict[Cache, Callable[[Path, Path, RecordProgress], Records]] = {
    "none": _open_shards,
    "ram": _open_in_memory,
    "disk": _open_on_disk,
}


class MappedReader(RowReader):
    """Rows in a file that is mapped into memory.

    Raises:
        UserError: the file has another size.
    """

    def __init__(self, directory: Path, manifest: Manifest, path: Path):
        self._path, self._bytes = path, cache_bytes(manifest)
        with open(path, "rb") as file:
            self._check_size(os.fstat(file.fileno()).st_size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        super().__init__(directory, manifest, np.frombuffer(self._map, row_dtype(manifest.tensors)))

    def __reduce__(self) -> tuple[type["MappedReader"], tuple[Path, Manifest, Path]]:
        return MappedReader, (self.directory, self.manifest, self._path)

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """See `RowReader`.

        Raises:
            UserError: the file was truncated meanwhile, so that to touch the map would kill the
                process.
        """
        self._check_size(self._map.size())
        return super().gather(index, mirrored)

    def _check_size(self, size: int) -> None:
        if size != self._bytes:
            raise UserError(
                f"{self._path}: has {size} bytes, not {self._bytes}: something else has changed "
                "it; repeat the command, which makes it again"
            )


def check_memory(needed: int, available: int) -> None:
    """Refuse rows that do not fit in memory; both in bytes.

    Raises:
        UserError: they do not.
    """
    if needed > available * _MEMORY_SHARE:
        raise UserError(
            f"--cache ram needs {_readable_size(needed)} of memory, and "
            f"{_readable_size(available)} are available, a fifth of it for training itself; use "
            "--cache disk or --cache none"
        )


def check_disk(folder: Path, needed: int, available: int) -> None:
    """Refuse rows that do not fit on the disk of a folder; both in bytes.

    Raises:
        UserError: they do not.
    """
    if needed > available:
        raise UserError(
            f"--cache disk needs {_readable_size(needed)} in {folder}, and "
            f"{_readable_size(available)} are free; make room, give another place with "
            "--cache-dir, or use --cache none"
        )


def _readable_size(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size >= 1e6 else f"{size:,} bytes"


def _note(manifest: Manifest, digest: str, modified: int) -> dict[str, Any]:
    """The note beside a file of rows: its dataset and layout, and how to recognise it."""
    dtype = row_dtype(manifest.tensors)
    fields = {name: [spec.dtype, list(spec.shape)] for name, spec in manifest.tensors.items()}
    return {
        "version": _VERSION,
        "dataset": manifest.digest(),
        "fields": fields,
        "row_bytes": dtype.itemsize,
        "rows": row_count(manifest),
        "sha256": digest,
        "modified_ns": modified,
    }


def _read_note(folder: Path, manifest: Manifest) -> Mapping[str, Any] | None:
    """The note, when it is one of this dataset and layout and the file beside it has its size."""
    try:
        note = parse_object(unseal((folder / NOTE_NAME).read_bytes()))
        size = (folder / ROWS_NAME).stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    wanted = _note(manifest, "", 0)
    known = all(
        note.get(name) == value
        for name, value in wanted.items()
        if name not in ("sha256", "modified_ns")
    )
    return note if known and size == cache_bytes(manifest) else None


def _is_noted(folder: Path, manifest: Manifest) -> bool:
    """Whether the file was left as the note says."""
    note = _read_note(folder, manifest)
    return note is not None and note["modified_ns"] == (folder / ROWS_NAME).stat().st_mtime_ns


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a touched file still has the bytes written; the note then says so."""
    note = _read_note(folder, manifest)
    if note is None or sha256_file(folder / ROWS_NAME) != note["sha256"]:
        return False
    _write_note(folder, manifest, note["sha256"])
    return True


def _write_note(folder: Path, manifest: Manifest, digest: str) -> None:
    note = _note(manifest, digest, (folder / ROWS_NAME).stat().st_mtime_ns)
    write_atomic(folder / NOTE_NAME, seal(json.dumps(note, indent=2) + "\n"))


def _make(folder: Path, directory: Path, manifest: Manifest, progress: RecordProgress) -> None:
    """Write the rows, whole or not at all; only for the lock's holder."""
    unfinished = folder.glob(".*.tmp")  # of a command that was killed
    for path in (*unfinished, folder / NOTE_NAME, folder / ROWS_NAME):
        path.unlink(missing_ok=True)
    check_disk(folder, cache_bytes(manifest), shutil.disk_usage(folder).free)

    digest = sha256()
    with written_whole(folder / ROWS_NAME) as file:
        for rows in read_rows(directory, manifest, progress):
            data = rows.view(np.uint8).data
            file.write(data)
            digest.update(data)
    _write_note(folder, manifest, digest.hexdigest())


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turns an OSError into the line that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--cache disk cannot use {folder} ({reason_of(error)}); mend that, give "
            "another place with --cache-dir, or use --cache none"
        ) from error
