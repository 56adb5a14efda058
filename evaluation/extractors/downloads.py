"""Weight files of feature networks: given, cached or downloaded, and always verified.

Not by pooch: it knows a file by a whole digest only, and does not stop when more comes than the
published file has, so that a wrong server would fill the disk before the checksum is looked at.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from schemas.errors import UserError
from schemas.files import written_whole
from schemas.storage.user_cache import expanded, user_cache_folder

TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_SHORTEST = 8  # hex digits: what torch hub puts into file names


@dataclass(frozen=True)
class WeightFile:
    """One published file.

    Args:
        name: under which it lies in a directory or the cache.
        url: of its public release.
        sha256: of its bytes in hex, or the first digits of it (8 at least).
        size: in bytes, where it is known: a download stops when there is more.
        other_names: of files with the same weights, which are taken where the first is not there.
        install: a command that brings the same weights.
    """

    name: str
    url: str
    sha256: str
    size: int | None = None
    other_names: tuple[str, ...] = ()
    install: str = ""


def cache_directory() -> Path:
    """Of weights: `$FLOWTRAIN_CACHE`, else the user's cache folder."""
    own = os.environ.get("FLOWTRAIN_CACHE")
    return expanded(own) if own else user_cache_folder()


def find_weights(file: WeightFile, given: Path | None = None) -> Path | None:
    """Where a weight file lies, its content unseen; None where nobody said and the cache has none.

    Args:
        file: which one.
        given: where the user says it is: the file under any name, or a directory that holds it
            under one of its own.

    Raises:
        UserError: it is not where it was said to be.
    """
    folder = cache_directory() if given is None else given
    names = (file.name, *file.other_names)
    places = [folder / name for name in names] if given is None or given.is_dir() else [given]
    found = next((place for place in places if place.is_file()), None)
    if found is None and given is not None:
        raise UserError(
            f"{places[0]}: no such file; download {file.url} to there, or leave the option away"
        )
    return found


def checked_digits(expected: str) -> str:
    """First digits of a SHA-256 in lower case; raises `UserError` where they are none."""
    digits = expected.strip().lower()
    if not _SHORTEST <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
        raise UserError(
            f"{expected!r} is no SHA-256; give its 64 hex digits, or the first {_SHORTEST} at least"
        )
    return digits


def download(file: WeightFile) -> Path:
    """Fetch into the cache: never half or wrong.

    Raises:
        UserError: it cannot be had, or what came is not the published file.
    """
    target = cache_directory() / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as stream:
            _receive(file, stream)
    # an OSError may be a URLError or a timeout
    except (OSError, http.client.HTTPException, _RefusedError) as error:
        otherwise = f"{file.install}, or " if file.install else ""
        raise UserError(
            f"cannot download {file.url}: {_reason(error)}; {otherwise}put the file at {target} "
            "or say where it is with --extractor-weights"
        ) from None
    return target


class _RefusedError(Exception):
    """What came is not the file."""


def _receive(file: WeightFile, stream: BinaryIO) -> None:
    state = hashlib.sha256()
    for chunk in _chunks(file):
        state.update(chunk)
        stream.write(chunk)
    found = state.hexdigest()
    if not found.startswith(file.sha256):
        raise _RefusedError(f"its SHA-256 is {found}, expected {file.sha256}")


def _chunks(file: WeightFile) -> Iterator[bytes]:
    """The body of the answer, checked against the length that the server and the table announce."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "flowtrain"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        announced = response.headers.get("Content-Length", "")
        received = 0
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if file.size is not None and received > file.size:
                raise _RefusedError(
                    f"it is longer than the {file.size} bytes of the published file"
                )
            yield chunk
        if announced.isdigit() and received != int(announced):
            raise _RefusedError(f"it ended after {received} of {announced} bytes")


def _reason(error: Exception) -> str:
    cause: object = error
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    elif isinstance(error, urllib.error.URLError):
        cause = error.reason
    return " ".join(str(cause).split()) or type(error).__name__
