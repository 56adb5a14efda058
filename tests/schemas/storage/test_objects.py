"""How a process connects to the stores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.storage import connection, objects, paths
from schemas.storage.local import LocalStore
from tests.pipelines.servers import Store

# `write`, `read` and `create` in a process that has nothing of Beam, nor of what imports it.
ALONE = """
import sys
from schemas.storage import paths
from schemas.storage.directory import open_directory
clients = {"boto3", "google.cloud.storage", "apache_beam", "pipelines"}
assert not clients & sys.modules.keys(), "before a URL is used"
root = sys.argv[1]
paths.write(f"{root}/a/b", b"0123456789")
assert paths.read(f"{root}/a/b", 3, 4) == b"3456"
assert [entry.name for entry in paths.entries(root)] == ["a/b"]
assert open_directory(root).read("a/b") == b"0123456789"
print(*sorted(clients & sys.modules.keys()))
"""
ABSENT = """
import sys
from schemas.storage import paths
sys.modules[sys.argv[2]] = None
try:
    paths.read(f"{sys.argv[1]}/a")
except Exception as error:
    print(type(error).__name__, error)
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_store_is_reached_without_beam_and_by_its_vendors_client_alone(server: Store) -> None:
    server.proxy.reset()
    client = {"s3": "boto3", "gs": "google.cloud.storage"}[server.scheme]
    assert python(ALONE, f"{server.url}/alone", **server.environment) == client


@pytest.mark.parametrize(
    ("scheme", "module"), [("s3", "boto3.session"), ("gs", "google.cloud.storage")]
)
def test_a_client_that_is_not_installed_is_one_line(scheme: str, module: str) -> None:
    told = python(ABSENT, f"{scheme}://bucket", module, STORAGE_EMULATOR_HOST="http://127.0.0.1:9")
    assert told.startswith(f"UserError {scheme}:// cannot be used here (")
    assert told.endswith("pip install 'flowtrain[cloud]'")
    assert len(told.splitlines()) == 1


def test_importing_the_package_says_nothing_of_how_to_connect() -> None:
    told = python(
        "from schemas.storage import objects, paths, directory, local, retries, store\n"
        "print(objects.connected_with() is None)"
    )
    assert told == "True"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("hdfs://host/data", "no such kind of storage; known are local paths, s3:// and gs://"),
        ("s3:///data", "no bucket; give s3://BUCKET/PATH"),
        ("gs://", "no bucket; give gs://BUCKET/PATH"),
    ],
)
def test_urls_that_name_nothing_are_refused(url: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        objects.object_store(url)
    assert str(refused.value) == f"{url}: {told}"


def test_another_way_to_connect_is_asked_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_connect", None)  # as it was, afterwards
    asked: list[str] = []
    store = LocalStore()

    def connect(scheme: str) -> LocalStore:
        asked.append(scheme)
        return store

    connection.connect_with(connect)
    assert paths.store_of("s3://bucket/a") is store
    assert paths.store_of("gs://bucket/a") is store
    assert asked == ["s3", "gs"]

    def cannot(scheme: str) -> LocalStore:
        raise RuntimeError("no credentials")

    connection.connect_with(cannot)
    with pytest.raises(UserError, match=r"^s3:// cannot be used here \(no credentials\); install"):
        paths.store_of("s3://bucket/a")
    assert isinstance(paths.store_of(str(tmp_path)), LocalStore)
