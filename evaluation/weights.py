"""Weight files of public feature networks: from a given place, from the cache, or downloaded; never unverified."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.files import sha256_file

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
    """

    name: str
    url: str
    sha256: str
    size: int | None = None


def cache_directory() -> Path:
    """`$FLOWTRAIN_CACHE`, else `$XDG_CACHE_HOME/flowtrain`, else `~/.cache/flowtrain`."""
    if own := os.environ.get("FLOWTRAIN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowtrain"


def find_weights(file: WeightFile, given: Path | None = None, expected: str | None = None) -> Path:
    """A local copy of a weight file whose checksum was verified.

    Args:
        file: which one.
        given: where the user says it is: the file under any name, or a directory that holds it under its own. None
            looks into the cache and downloads what is not there.
        expected: SHA-256 in hex (8 digits at least) of other weights that the user means to use instead.

    Raises:
        UserError: it is not where it was said to be, cannot be downloaded, or has another checksum.
    """
    digest = file.sha256 if expected is None else _checked(expected)
    if given is not None:
        path = given / file.name if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"{path}: no such file; download {file.url} to there, or leave the option away")
    else:
        path = cache_directory() / file.name
        if not path.is_file():
            return _download(file, path, digest)
    found = sha256_file(path)
    if not found.startswith(digest):
        raise UserError(f"{path}: SHA-256 {found}, expected {digest}; replace it by {file.url}, or name its own digest")
    return path


def _checked(expected: str) -> str:
    digits = expected.strip().lower()
    if not _SHORTEST <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
        raise UserError(f"{expected!r} is no SHA-256; give its 64 hex digits, or the first {_SHORTEST} at least")
    return digits


def _download(file: WeightFile, target: Path, digest: str) -> Path:
    """Fetch to a temporary name, verify, rename: nothing half or wrong ever lies in the cache."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        state = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{file.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            for chunk in _chunks(file):
                state.update(chunk)
                stream.write(chunk)
        found = state.hexdigest()
        if not found.startswith(digest):
            raise _RefusedError(f"its SHA-256 is {found}, expected {digest}")
        temporary.replace(target)
    except (OSError, http.client.HTTPException, _RefusedError) as error:  # OSError: also URLError and timeouts
        raise UserError(
            f"cannot download {file.url}: {_reason(error)}; put the file at {target} "
            "or say where it is with --extractor-weights"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


class _RefusedError(Exception):
    """What came is not the file."""


def _chunks(file: WeightFile) -> Iterator[bytes]:
    """The body of the answer, checked against the length that the server and the table announce."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "flowtrain"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        announced = response.headers.get("Content-Length", "")
        received = 0
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if file.size is not None and received > file.size:
                raise _RefusedError(f"it is longer than the {file.size} bytes of the published file")
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
