"""Stages a dataset: a whole copy on a local disk, where training reads records at random.

Every file is compared with its checksum before it takes its name, and the manifest comes last: what
has a manifest is whole. The same command again fetches only what is missing.
"""

import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from pipelines.dataset.anywhere import StoredDataset, open_dataset, read_manifest_bytes
from schemas.errors import UserError, reason_of
from schemas.files import sha256_file
from schemas.locked import locked
from schemas.manifest import MANIFEST_NAME, FileInfo, Manifest, ShardInfo, parse_manifest
from schemas.sealed import unseal
from schemas.storage import paths
from schemas.storage.directory import WORK, Directory, reported
from schemas.storage.url import is_url
from schemas.storage.user_cache import expanded

Progress = Callable[[int], object]

_COPY_NAME = "dataset"
_DOWNLOADS = 8  # at once


def staged_bytes(url: str) -> int:
    """Bytes of the files that `stage` tells its progress in.

    Raises:
        UserError: as `pipelines.dataset.anywhere.open_dataset`.
    """
    return sum(info.bytes for info in _listed(open_dataset(url).manifest))


def stage(url: str, directory: str | Path, progress: Progress = lambda size: None) -> Path:
    """Copy the dataset at `url`, byte for byte, to `directory/DIGEST`.

    Args:
        url: `gs://` or `s3://`.
        directory: where copies are kept. A second command that wants the same dataset waits for the
            first.
        progress: told the bytes of each file that has come or is there, in all `staged_bytes(url)`;
            nothing where the whole copy is there already.

    Returns:
        The copy.

    Raises:
        UserError: no URL, no finished dataset there, one of its files is missing or damaged (it is
            named), the store or the disk fails, or there is no room.
    """
    root = paths.absolute(url)
    if not is_url(root):
        raise UserError(
            f"{url} is no URL of an object store; a dataset on a local disk needs no copy, use it "
            "as it is"
        )
    card = read_manifest_bytes(root)
    dataset = StoredDataset(root, parse_manifest(card, paths.join(root, MANIFEST_NAME)))
    folder = expanded(directory).absolute() / dataset.manifest.digest()
    target = Directory(str(folder / _COPY_NAME))
    with reported(target), _source_reported(dataset):
        if not _is_whole(target, dataset.manifest):
            with locked(folder / f"{_COPY_NAME}.lock"):
                if not _is_whole(target, dataset.manifest):  # whoever waited finds it whole
                    _copy(target, dataset, card, progress)
    return Path(target.root)


def _listed(manifest: Manifest) -> tuple[ShardInfo | FileInfo, ...]:
    return (*manifest.shards, *manifest.files)


def _is_whole(target: Directory, manifest: Manifest) -> bool:
    """Whether a copy was finished and its files have their sizes; contents are not read."""
    if not target.exists(MANIFEST_NAME):
        return False
    there = {entry.name: entry.size for entry in paths.entries(target.root)}
    listed = {info.name: info.bytes for info in _listed(manifest)}
    return listed.items() <= there.items() and there.keys() >= {*manifest.sealed}


def _copy(target: Directory, dataset: StoredDataset, card: bytes, progress: Progress) -> None:
    Path(target.root).mkdir(exist_ok=True)
    target.remove(MANIFEST_NAME)
    target.sweep()  # what a command that was killed has left
    missing = []
    for info in _listed(dataset.manifest):
        if target.matches(info.name, info.bytes, info.sha256):
            progress(info.bytes)
        else:
            missing.append(info)
    _check_room(target, dataset, sum(info.bytes for info in missing))
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        fetches = {pool.submit(_fetch, target, dataset, info): info for info in missing}
        try:
            for done in as_completed(fetches):
                done.result()
                progress(fetches[done].bytes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for name in dataset.manifest.sealed:
        _fetch_sealed(target, dataset, name)
    shutil.rmtree(target.path(WORK), ignore_errors=True)
    target.write(MANIFEST_NAME, card)


def _check_room(target: Directory, dataset: StoredDataset, needed: int) -> None:
    free = shutil.disk_usage(target.root).free
    if needed > free:
        raise UserError(
            f"{dataset.root} needs {needed:,} bytes more in {target.root}, and {free:,} are free; "
            "make room, or give another place with --cache-dir"
        )


def _fetch(target: Directory, dataset: StoredDataset, info: ShardInfo | FileInfo) -> None:
    with target.staging() as folder:
        local = folder / Path(info.name).name
        try:
            paths.download(dataset.where(info.name), local)
        except FileNotFoundError:
            raise _damaged(dataset, info.name, "is missing") from None
        if sha256_file(local) != info.sha256:
            raise _damaged(
                dataset, info.name, "is damaged (its bytes are not those of its checksum)"
            )
        target.publish(local, info.name)


def _fetch_sealed(target: Directory, dataset: StoredDataset, name: str) -> None:
    try:
        data = paths.read(dataset.where(name))
        unseal(data)
    except FileNotFoundError:
        raise _damaged(dataset, name, "is missing") from None
    except ValueError as error:
        raise _damaged(dataset, name, f"is damaged ({error})") from None
    target.write(name, data)


def _damaged(dataset: StoredDataset, name: str, what: str) -> UserError:
    verify = shlex.join(["flowtrain", "data", "verify", dataset.root])
    return UserError(f"{dataset.where(name)} {what}; `{verify}` says how to mend it")


@contextmanager
def _source_reported(dataset: StoredDataset) -> Iterator[None]:
    """Tells a store that cannot be read from a disk that cannot be written."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or "")
        if where.startswith(dataset.root):
            raise UserError(
                f"{where}: cannot be read ({reason_of(error)}); mend that and repeat the command"
            ) from error
        raise
