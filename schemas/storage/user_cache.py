"""The user's home, and the folder there for files that can be made or fetched again: weights,
datasets, compiled programs.
"""

import os
import tempfile
from pathlib import Path

from schemas.errors import UserError, reason_of


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced; as it is where there is no such home, so that it is
    not found rather than a fault.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/flowtrain`, else `~/.cache/flowtrain`, else a folder of the user's own where
    temporary files are: a container's user may have neither a home nor a name.

    A relative `XDG_CACHE_HOME` is left out, as the XDG Base Directory Specification asks for.

    Raises:
        UserError: there is no home, and somebody else has the folder of temporary files.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "flowtrain"
    try:
        home = Path.home()
    except RuntimeError:
        return _temporary()
    return home / ".cache" / "flowtrain"


def _temporary() -> Path:
    """A folder that nobody else can write to: what is read from a cache may be run."""
    folder = Path(tempfile.gettempdir(), f"flowtrain-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(
            f"{folder}: there is no home directory, and this one cannot be made "
            f"({reason_of(error)}); set XDG_CACHE_HOME to a folder of your own"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"{folder}: there is no home directory, and this one is open to others; set "
            "XDG_CACHE_HOME to a folder of your own"
        )
    return folder
