"""Weight files from a place, the cache and a real HTTP server."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evaluation.extractors import downloads
from evaluation.extractors.downloads import (
    WeightFile,
    cache_directory,
    checked_digits,
    download,
    find_weights,
)
from schemas.errors import UserError

CONTENT = bytes(range(256)) * 9000  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole, /cut (fewer bytes than announced), /stalls, /endless (no length), and 404 for the
    rest.
    """

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path in ("/cut", "/stalls"):
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.wfile.flush()
            time.sleep(1.0 if self.path == "/stalls" else 0.0)
        elif self.path == "/endless":
            self.wfile.write(CONTENT + b"more")
        else:
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


def published(url: str, sha256: str = DIGEST, size: int | None = len(CONTENT)) -> WeightFile:
    return WeightFile("net.pth", url, sha256, size)


@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8]], ids=["whole", "prefix"])
def test_downloaded_once_then_cached(server: str, cache: Path, sha256: str) -> None:
    file = published(f"{server}/whole", sha256)
    assert find_weights(file) is None
    path = download(file)
    assert path == cache / "net.pth"
    assert path.read_bytes() == CONTENT
    assert find_weights(file) == path
    assert Handler.requests == ["/whole"]
    assert [entry.name for entry in cache.iterdir()] == ["net.pth"]


@pytest.mark.parametrize(
    ("page", "sha256", "size", "message"),
    [
        ("cut", DIGEST, None, f"ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("stalls", DIGEST, None, "timed out"),
        ("endless", DIGEST, len(CONTENT), f"longer than the {len(CONTENT)} bytes"),
        ("missing", DIGEST, None, "404"),
        ("whole", "0" * 64, None, f"its SHA-256 is {DIGEST}, expected {'0' * 64}"),
    ],
    ids=["cut", "stalls", "endless", "missing", "checksum"],
)
def test_nothing_wrong_stays_in_the_cache(
    server: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    sha256: str,
    size: int | None,
    message: str,
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    url = f"{server}/{page}"
    with pytest.raises(UserError) as caught:
        download(published(url, sha256, size))
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert all(part in line for part in (url, str(cache / "net.pth"), "--extractor-weights"))
    assert list(cache.iterdir()) == []


def test_no_server(cache: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"cannot download http://127\.0\.0\.1.*refused"):
            download(published(f"http://127.0.0.1:{taken.getsockname()[1]}/whole"))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made(server: str, cache: Path) -> None:
    cache.write_text("a file in its place")
    with pytest.raises(UserError, match="cannot download"):
        download(published(f"{server}/whole"))


def test_given_file_or_directory(tmp_path: Path, cache: Path) -> None:
    file = published("http://127.0.0.1:1/never-asked")
    path = tmp_path / "net.pth"
    path.write_bytes(CONTENT)
    renamed = tmp_path / "other-name.pth"
    renamed.write_bytes(CONTENT)
    assert find_weights(file, path) == path
    assert find_weights(file, tmp_path) == path
    assert find_weights(file, renamed) == renamed
    assert not cache.exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/net\.pth: no such file; download http"):
        find_weights(file, tmp_path / "empty")


def test_other_names_of_the_same_weights(tmp_path: Path, cache: Path) -> None:
    file = replace(published("http://127.0.0.1:1/never-asked"), other_names=("a.pt", "b.pt"))
    for folder, given in ((tmp_path / "given", tmp_path / "given"), (cache, None)):
        folder.mkdir()
        for name in ("b.pt", "a.pt", "net.pth"):  # the first of the table wins
            (folder / name).write_bytes(CONTENT)
            assert find_weights(file, given) == folder / name


def test_the_command_that_brings_the_same_is_told(cache: Path) -> None:
    file = replace(published("http://127.0.0.1:1/nobody"), install="pip install net")
    with pytest.raises(UserError, match=r"; pip install net, or put the file at [^\n]*net\.pth"):
        download(file)


def test_what_is_no_sha256() -> None:
    assert checked_digits(f" {DIGEST.upper()}") == DIGEST
    for wrong in ("abc", "z" * 64, DIGEST + "0"):
        with pytest.raises(UserError, match="no SHA-256"):
            checked_digits(wrong)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLOWTRAIN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "flowtrain"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/flowtrain")
    monkeypatch.setenv("FLOWTRAIN_CACHE", "/y")
    assert cache_directory() == Path("/y")
