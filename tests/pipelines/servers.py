"""Object stores on loopback: moto for S3, an emulator for Google's, each behind a proxy that can
misbehave.
"""

import http.client
import itertools
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "bucket"
_HOP = {"connection", "transfer-encoding", "content-length"}

# What can happen to a request, by name; `lost` and `cut` reach the store, the other two do not.
PASS, DROP, LOST, CUT = "pass", "drop", "lost", "cut"
# of the number of the request, its method and path: one of these, or a status
Trouble = Callable[[int, str, str], str]


def well(number: int, method: str, path: str) -> str:
    """No trouble."""
    return PASS


def now_and_then(share: float, seed: int = 0) -> Trouble:
    """Trouble of all kinds for a share of the requests."""
    chance = random.Random(seed)
    kinds = ("500", "503", "429", DROP, LOST, CUT)

    def trouble(number: int, method: str, path: str) -> str:
        return chance.choice(kinds) if chance.random() < share else PASS

    return trouble


class Proxy(ThreadingHTTPServer):
    """Forwards requests to a server on loopback, unless `trouble` says otherwise. Keeps a log of
    (method, path).
    """

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = port
        self.trouble: Trouble = well
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reset(self, trouble: Trouble = well) -> None:
        """Begin to count anew."""
        with self.lock:
            self.trouble, self.log, self.numbers = trouble, [], itertools.count(1)

    def decide(self, method: str, path: str) -> str:
        with self.lock:
            self.log.append((method, path))
            number = next(self.numbers)
        return self.trouble(number, method, path)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body travel together
    disable_nagle_algorithm = True
    server: Proxy

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def _forward(self) -> None:
        body = self._body()
        what = self.server.decide(self.command, self.path)
        if what == DROP:
            self.close_connection = True
        elif what.isdigit():
            self._answer(
                int(what),
                [],
                b"" if self.command == "HEAD" else b"<Error><Code>Trouble</Code></Error>",
            )
        else:
            self._pass_on(body, what)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            # a client killed while it was sending; a store takes no half of an object
            if len(body) < length:
                raise ConnectionAbortedError(f"{len(body)} of {length} bytes came")
            return body
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self, body: bytes, what: str) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in _HOP
            }
            upstream.request(
                self.command, self.path, body, {**headers, "Content-Length": str(len(body))}
            )
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if what == LOST:
            self.close_connection = True
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(answer.status, headers, data, length, cut=what == CUT)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        length: str | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if cut and data:
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Stay quiet."""


@dataclass(frozen=True)
class Store:
    """A running object store: the URL of an empty place in its bucket, and what a command needs in
    its environment to reach it.
    """

    scheme: str
    proxy: Proxy
    environment: dict[str, str]
    place: str = ""

    @property
    def url(self) -> str:
        return "/".join([f"{self.scheme}://{BUCKET}", *filter(None, [self.place])])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _server(*arguments: str, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, f"{arguments[0]} ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _proxy(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    thread = threading.Thread(
        target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@contextmanager
def s3() -> Iterator[Store]:
    """An S3 server."""
    pytest.importorskip("moto", reason="no S3 server: pip install 'flowtrain[test]'")
    port = _free_port()
    with (
        _server("moto.server", "-H", "127.0.0.1", "-p", str(port), port=port),
        _proxy(port) as proxy,
    ):
        environment = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield Store("s3", proxy, environment)


@contextmanager
def google() -> Iterator[Store]:
    """A server that speaks like Google Cloud Storage, but knows no conditional writes."""
    pytest.importorskip(
        "gcp_storage_emulator", reason="no GCS emulator: pip install 'flowtrain[test]'"
    )
    port = _free_port()
    with ExitStack() as stack:
        arguments = (
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--in-memory",
            "--default-bucket",
            BUCKET,
        )
        stack.enter_context(_server("gcp_storage_emulator", *arguments, port=port))
        proxy = stack.enter_context(_proxy(port))
        yield Store("gs", proxy, {"STORAGE_EMULATOR_HOST": proxy.url, "NO_GCE_CHECK": "true"})


SERVERS = {"s3": s3, "gs": google}
