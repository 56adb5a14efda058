"""A server on loopback that answers the hub's client as the Hugging Face hub does, for models
only.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories as {`org/name`: {commit: {path: content}}}, and names of commits (branches,
    tags) of each.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]]
    references: dict[str, dict[str, str]]
    gated: frozenset[str] = frozenset()
    endpoint: str = ""
    # about models: method and path, in order
    requests: list[tuple[str, str]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Files whose contents were sent, in order."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path in self.requests
            if _is_content(method, path)
        ]


def _is_content(method: str, path: str) -> bool:
    return method == "GET" and "/resolve/" in path


def content_tag(content: bytes) -> str:
    """The ETag of a file, and its name in the cache."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.endpoint`, until the context ends."""

    class Handler(_Handler):
        content = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    content: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api = path.startswith("api/models/")
        if path.startswith("api/") and not api:  # the client asks for more than models
            return self._send(404, b"", {})
        self.content.requests.append((self.command, path))
        parts = path.removeprefix("api/models/").split("/")
        repository = "/".join(parts[:2])
        commits = self.content.repositories.get(repository)
        if commits is None:  # the real one says 401 to strangers, as it does of private ones
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repository in self.content.gated and not api:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        revision = parts[3] if len(parts) > 3 else "main"
        commit = self.content.references[repository].get(revision, revision)
        if commit not in commits:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = commits[commit]
        if api:
            kind = parts[2] if len(parts) > 2 else "revision"
            return self._send(
                200, json.dumps(_LISTINGS[kind](repository, commit, files)).encode(), {}
            )
        name = "/".join(parts[4:])
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send(
            200, files[name], {"ETag": f'"{content_tag(files[name])}"', "X-Repo-Commit": commit}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _tree(repository: str, commit: str, files: dict[str, bytes]) -> object:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": content_tag(content)[:40]}
        for path, content in files.items()
    ]


def _info(repository: str, commit: str, files: dict[str, bytes]) -> object:
    return {
        "id": repository,
        "modelId": repository,
        "sha": commit,
        "siblings": [{"rfilename": path} for path in files],
    }


_LISTINGS = {"tree": _tree, "revision": _info}
