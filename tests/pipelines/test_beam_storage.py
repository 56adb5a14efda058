"""Object stores are reached as Beam was told; where it was told nothing, by the environment."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import beam_storage
from schemas.storage import paths
from schemas.storage.objects import connect_by_environment
from tests.pipelines.servers import Store


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Neither Beam's options nor connections of another test, nor ours in one."""
    before = FileSystems._pipeline_options
    beam_storage._connect.cache_clear()
    yield
    FileSystems.set_options(before)
    beam_storage._connect.cache_clear()
    connect_by_environment.cache_clear()


def test_options_of_beam_go_before_the_environment(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_store.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    options = PipelineOptions(
        [
            f"--s3_endpoint_url={s3_store.proxy.url}",
            "--s3_region_name=us-east-1",
            "--s3_access_key_id=told",
            "--s3_secret_access_key=secret",
        ]
    )
    FileSystems.set_options(options)
    store = beam_storage.connect("s3")
    assert beam_storage.connect("s3") is store, "one connection for the same options"
    url = f"{s3_store.url}/a"
    store.write(url, b"0123")
    assert paths.read(url) == b"0123", "what the package reads with is this connection"
    FileSystems.set_options(PipelineOptions(["--s3_endpoint_url=http://127.0.0.1:9"]))
    assert beam_storage.connect("s3") is not store


def test_without_options_the_environment_is_asked(s3_store: Store) -> None:
    FileSystems.set_options(None)
    store = beam_storage.connect("s3")
    assert store is connect_by_environment("s3")
    store.write(f"{s3_store.url}/b", b"45")
    assert store.read(f"{s3_store.url}/b") == b"45"


def test_beam_is_not_imported_for_a_connection() -> None:
    code = """
import sys
from pipelines import beam_storage
from schemas.storage.objects import connect_by_environment
assert beam_storage.connect("s3") is connect_by_environment("s3")
print("apache_beam" in sys.modules)
"""
    pytest.importorskip("boto3", reason="pip install 'flowtrain[cloud]'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
