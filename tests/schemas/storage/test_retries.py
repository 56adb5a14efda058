import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.storage import retries
from schemas.storage.retries import ATTEMPTS, repeated
from tests.pipelines.servers import PASS
from tests.schemas.storage.conftest import Place


class StatusError(Exception):
    """The error of a client."""


class Client:
    """Answers with one status after the other; 200 is good."""

    def __init__(self, statuses: Sequence[int]):
        self.statuses = list(statuses)

    def status(self, error: Exception) -> int | None:
        return int(str(error)) if isinstance(error, StatusError) else None

    @repeated
    def ask(self, url: str, answer: str = "answer") -> str:
        status = self.statuses.pop(0)
        if status != 200:
            raise StatusError(status) if status > 0 else ZeroDivisionError
        return f"{url} {answer}"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for, and not made."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_passing_trouble_is_asked_away_with_growing_pauses(
    pauses: list[float], status: int
) -> None:
    client = Client([*[status] * (ATTEMPTS - 1), 200])
    assert client.ask("s3://b/k", answer="x") == "s3://b/k x"
    assert len(pauses) == ATTEMPTS - 1
    for number, pause in enumerate(pauses):
        assert retries.PAUSE * 2**number <= pause < 2 * retries.PAUSE * 2**number


def test_trouble_that_stays_is_an_error_of_the_url(pauses: list[float]) -> None:
    client = Client([500] * (ATTEMPTS + 1))
    with pytest.raises(OSError, match=r"the object store fails \(500\)") as failed:
        client.ask("s3://b/k")
    assert (failed.value.errno, failed.value.filename) == (errno.EIO, "s3://b/k")
    assert len(client.statuses) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, FileNotFoundError),
        (401, PermissionError),
        (403, PermissionError),
        (412, FileExistsError),
        (400, OSError),
    ],
)
def test_a_refusal_is_not_asked_again(
    pauses: list[float], status: int, kind: type[OSError]
) -> None:
    client = Client([status, 200])
    with pytest.raises(kind) as refused:
        client.ask("s3://b/k")
    assert type(refused.value) is kind
    assert refused.value.filename == "s3://b/k"
    assert (client.statuses, pauses) == ([200], [])


def test_an_error_of_another_kind_passes_through(pauses: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        Client([-1, 200]).ask("s3://b/k")
    assert pauses == []


def test_every_request_of_every_store_is_repeated(
    place: Place, tmp_path: Path, pauses: list[float]
) -> None:
    if place.server is None:
        pytest.skip("a disk is not asked again")
    store, url = place.store, f"{place.root}/file"
    staged = tmp_path / "staged"
    staged.write_bytes(b"abc")
    requests = [
        lambda: store.write(url, b"abc"),
        lambda: store.publish(url, staged),
        lambda: store.read(url),
        lambda: store.facts(url),
        lambda: list(store.entries(place.root)),
        lambda: store.download(url, tmp_path / "copy"),
        lambda: store.delete(url),
        lambda: store.create(url, b"abc"),
    ]
    for request in requests:
        place.server.proxy.reset(lambda number, method, path: "503" if number == 1 else PASS)
        pauses.clear()
        request()
        assert len(pauses) == 1
