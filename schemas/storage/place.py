"""Paths that only the local disk serves, checked before anything is read."""

import stat
import tempfile
from pathlib import Path

from schemas.errors import UserError, reason_of
from schemas.storage.url import is_url


def check_local(path: str) -> None:
    """See that a path is one of this machine's.

    Raises:
        UserError: it is empty, or a URL.
    """
    if not path.strip():
        raise UserError("the path is empty; give a file or a directory")
    if is_url(path):
        raise UserError(f"{path}: object stores are not served here; give a path on this machine")


def check_writable_place(path: str) -> None:
    """See that a path can be written to, and that this replaces no device, pipe or socket: files
    are renamed into place.

    Raises:
        UserError: as `check_local`; neither a file nor a directory is there, or none can be, as
            below a file or by too long a name.
    """
    check_local(path)
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be written ({reason}); give another path") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(
            f"{path}: a device, a pipe or a socket, which the output would take the place of; "
            "give a file or a directory"
        )


def check_takes_files(folder: Path) -> None:
    """See that a folder, or the nearest that is there above it, takes a file; none is left there.

    Raises:
        UserError: it does not.
    """
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    try:
        tempfile.TemporaryFile(dir=there).close()  # without a name, where the system can
    except OSError as error:
        raise UserError(
            f"{there}: files cannot be written there ({reason_of(error)}); give another place"
        ) from None
