"""Requests to an object store, repeated where they fail: it may do so now and then."""

import errno
import functools
import random
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

ATTEMPTS = 7
PAUSE = 0.2  # seconds before the second attempt; twice as long before each further one


class Client(Protocol):
    """Knows the errors of a vendor's client."""

    def status(self, error: Exception) -> int | None:
        """HTTP status behind an error; 0 where the store was not reached, None for an error of
        another kind.
        """


_Client = TypeVar("_Client", bound=Client)
_More = ParamSpec("_More")
_Answer = TypeVar("_Answer")


def repeated(
    request: Callable[Concatenate[_Client, str, _More], _Answer],
) -> Callable[Concatenate[_Client, str, _More], _Answer]:
    """A method of (client, URL, ...) that asks again when the store or the way to it fails.

    It raises:
        FileNotFoundError: 404.
        PermissionError: 401 or 403.
        FileExistsError: 412.
        OSError: the store refuses otherwise, or goes on failing.
    """

    @functools.wraps(request)
    def ask(client: _Client, url: str, *more: _More.args, **named: _More.kwargs) -> _Answer:
        for attempt in range(ATTEMPTS):
            try:
                return request(client, url, *more, **named)
            except Exception as error:
                status = client.status(error)
                if status is None:
                    raise
                if not _passing(status) or attempt == ATTEMPTS - 1:
                    raise _refusal(status, error, url) from error
            time.sleep(PAUSE * 2**attempt * (1 + random.random()))
        raise AssertionError("unreachable")

    return ask


def _passing(status: int) -> bool:
    """Whether another attempt may go better."""
    return status == 0 or status in (408, 409, 429) or status >= 500


def _refusal(status: int, error: Exception, url: str) -> OSError:
    reason = " ".join(str(error).split())
    if status == 404:
        return FileNotFoundError(errno.ENOENT, f"not there ({reason})", url)
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"not allowed ({reason})", url)
    if status == 412:
        return FileExistsError(errno.EEXIST, f"there already ({reason})", url)
    return OSError(errno.EIO, f"the object store fails ({reason})", url)
