"""Each kind of storage, reached without Beam: a folder, an S3 server, an emulator of Google's."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from schemas.storage.local import LocalStore
from schemas.storage.objects import GoogleStore, S3Store
from schemas.storage.store import ObjectStore
from tests.pipelines.servers import SERVERS, Store

_PLACES = itertools.count()


@dataclass(frozen=True)
class Place:
    """An empty root, its store, and the server behind it; None for the local disk."""

    root: str
    store: ObjectStore
    server: Store | None


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[[str], Store]]:
    """Starts the server of a scheme, once a session. Leaves the environment alone, in which the
    tests of other packages have servers of their own.
    """
    with ExitStack() as stack:
        yield cache(lambda scheme: stack.enter_context(SERVERS[scheme]()))


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, start: Callable[[str], Store]) -> Store:
    """Each kind of server."""
    running = start(request.param)
    running.proxy.reset()
    return running


@pytest.fixture(scope="session")
def connected(start: Callable[[str], Store]) -> Callable[[str], ObjectStore]:
    """The store of a scheme, connected to its server."""

    @cache
    def connect(scheme: str) -> ObjectStore:
        with pytest.MonkeyPatch.context() as patch:  # both clients read it when they are made
            for name, value in start(scheme).environment.items():
                patch.setenv(name, value)
            return S3Store() if scheme == "s3" else GoogleStore()

    return connect


@pytest.fixture(params=["local", *SERVERS])
def place(
    request: pytest.FixtureRequest,
    start: Callable[[str], Store],
    connected: Callable[[str], ObjectStore],
    tmp_path: Path,
) -> Place:
    """An empty place of a test's own in each kind of store."""
    if request.param == "local":
        return Place(str(tmp_path), LocalStore(), None)
    running = start(request.param)
    running.proxy.reset()
    return Place(f"{running.url}/place-{next(_PLACES)}", connected(request.param), running)
