"""Datasets in object stores, by whole commands against servers on loopback: the bytes are those of
a local run.
"""

import hashlib
import json
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipelines import beam_storage
from pipelines.preprocess.pipeline import preprocess
from schemas.errors import UserError
from schemas.manifest import parse_manifest
from schemas.storage import paths, retries
from schemas.storage.directory import open_directory
from tests.forked import start_preprocess
from tests.pipelines.running import contents, objects, plan, run
from tests.pipelines.servers import PASS, Store, now_and_then, well

OPTIONS = ("--resolution", 16, "--vae", "none", "--shards", 4, "--batch-size", 8, "--seed", 3)
CHANGES: dict[str, object] = {"seed": 3}  # the same, for `plan`


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a local run writes."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert run(photos, out, *OPTIONS).exit_code == 0
    return contents(out)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two attempts are short."""
    monkeypatch.setattr(retries, "PAUSE", 0.001)


def put_photos(photos: Path, url: str) -> None:
    for name, data in contents(photos).items():
        paths.write(paths.join(url, name), data)


def test_dataset_in_a_store_that_fails_now_and_then_is_that_of_a_local_run(
    store: Store, photos: Path, expected: dict[str, bytes], temporary: Path, quick: None
) -> None:
    out = f"{store.url}/failing"
    store.proxy.reset(now_and_then(0.15))
    result = run(photos, out, *OPTIONS)
    store.proxy.reset()
    assert result.exit_code == 0, result.stderr
    assert objects(out) == expected
    assert list(temporary.iterdir()) == []
    result = run(photos, out, *OPTIONS, "--json")
    assert json.loads(result.stdout)["state"] == "was finished already"


def test_source_in_a_store_that_fails_now_and_then_gives_the_same_shards(
    store: Store, photos: Path, expected: dict[str, bytes], tmp_path: Path, quick: None
) -> None:
    put_photos(photos, f"{store.url}/photos")
    out = f"{store.url}/from-store"
    store.proxy.reset(now_and_then(0.15, seed=1))
    result = run(f"{store.url}/photos", out, *OPTIONS)
    store.proxy.reset()
    assert result.exit_code == 0, result.stderr
    made = objects(out)
    assert made.keys() == expected.keys()
    assert {n: d for n, d in made.items() if "array_record" in n} == {
        n: d for n, d in expected.items() if "array_record" in n
    }
    ours, theirs = (parse_manifest(each["manifest.json"], "") for each in (made, expected))
    assert ours.source.descriptor == f"{store.url}/photos"
    assert ours.source.digest == theirs.source.digest
    assert (ours.shards, ours.channels, ours.counts) == (
        theirs.shards,
        theirs.channels,
        theirs.counts,
    )


def test_only_what_is_missing_is_made_again(
    store: Store, photos: Path, expected: dict[str, bytes]
) -> None:
    out = f"{store.url}/rebuilt"
    assert run(photos, out, *OPTIONS).exit_code == 0
    shards = sorted(name for name in expected if "array_record" in name)
    paths.delete(f"{out}/{shards[1]}")
    paths.write(f"{out}/{shards[2]}", expected[shards[2]][:-1])
    store.proxy.reset()
    assert run(photos, out, *OPTIONS).exit_code == 0
    written = {
        name
        for name in shards
        for method, path in store.proxy.log
        if method in ("PUT", "POST") and name in path
    }
    assert written <= {shards[1], shards[2]}
    # Google's uploads do not carry the name in the path
    assert store.scheme == "gs" or len(written) == 2
    reads = [path for method, path in store.proxy.log if method == "GET" and "array_record" in path]
    # where Google's facts are read
    assert not [path for path in reads if not path.startswith("/storage/v1/b/")]
    assert objects(out) == expected


def test_half_made_dataset_with_other_settings_is_refused(store: Store, photos: Path) -> None:
    out = f"{store.url}/taken"
    assert run(photos, out, *OPTIONS).exit_code == 0
    before = objects(out)
    result = run(photos, out, *OPTIONS, "--seed", 4)
    assert result.exit_code == 2
    assert "with other settings (seed: 3 -> 4)" in result.stderr
    assert objects(out) == before
    paths.write(f"{store.url}/other/text", b"")
    assert (
        f"{store.url}/other is not empty (text)"
        in run(photos, f"{store.url}/other", *OPTIONS).stderr
    )


def test_store_that_always_fails_is_one_line_in_bounded_time(
    store: Store, photos: Path, quick: None
) -> None:
    store.proxy.reset(lambda number, method, path: "500")
    begin = time.monotonic()
    result = run(photos, f"{store.url}/never", *OPTIONS)
    assert time.monotonic() - begin < 20
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot use {store.url}/never: the object store fails (" in line
    assert line.endswith("repeat the command")
    listings = [path for _, path in store.proxy.log if "prefix=" in path]
    assert len(listings) == retries.ATTEMPTS  # the clients do not repeat it on their own, as well


def test_store_that_fails_from_the_middle_on_is_one_line_and_the_run_goes_on_later(
    store: Store, photos: Path, expected: dict[str, bytes], quick: None
) -> None:
    out = f"{store.url}/middle"
    store.proxy.reset(lambda number, method, path: "503" if number > 30 else PASS)
    result = run(photos, out, *OPTIONS)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "repeat the command" in line
    store.proxy.reset()
    assert run(photos, out, *OPTIONS).exit_code == 0
    assert objects(out) == expected


@pytest.mark.parametrize("status", ["401", "403"])
def test_access_denied_is_one_line(store: Store, photos: Path, status: str) -> None:
    store.proxy.reset(lambda number, method, path: status)
    result = run(photos, f"{store.url}/denied", *OPTIONS)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot use {store.url}/denied: not allowed (" in line


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_bucket_that_cannot_be_written_is_one_line(store: Store, photos: Path, method: str) -> None:
    store.proxy.reset(lambda number, used, path: "403" if used == method else PASS)
    result = run(photos, f"{store.url}/read-only-{method}", *OPTIONS)
    store.proxy.reset()
    if (method == "PUT") == (store.scheme == "s3"):
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert "not allowed (" in line
        assert objects(f"{store.url}/read-only-{method}") == {}
    else:  # the other one is not what this store is written with
        assert result.exit_code == 0


def test_bucket_that_is_not_there_is_one_line(store: Store, photos: Path) -> None:
    result = run(photos, f"{store.scheme}://nobody-has-this/data", *OPTIONS)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot use {store.scheme}://nobody-has-this/data: not there (" in line


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("s3:///data", "s3:///data: no bucket; give s3://BUCKET/PATH"),
        (
            "hdfs://host/data",
            "hdfs://host/data: no such kind of storage; known are local paths, s3:// and gs://",
        ),
    ],
)
def test_urls_that_name_nothing_are_refused(photos: Path, url: str, line: str) -> None:
    result = run(photos, url, *OPTIONS)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(line)


@pytest.mark.parametrize(
    ("module", "url"),
    [("boto3.session", "s3://bucket/a"), ("apache_beam.io.gcp.gcsio", "gs://bucket/a")],
)
def test_client_that_is_not_installed_is_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, module: str, url: str
) -> None:
    beam_storage._connect.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    result = run(photos, url, *OPTIONS)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "pip install 'flowtrain[cloud]'" in line


def test_two_commands_at_once_help_each_other(
    s3_store: Store, photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    s3_store.proxy.reset()
    out = f"{s3_store.url}/both"
    both = [start_preprocess(photos, out, *OPTIONS, **s3_store.environment) for _ in range(2)]
    assert [command.wait() for command in both] == [0, 0], [command.text() for command in both]
    run(photos, out, *OPTIONS)  # clears away what the slower one may have left
    assert objects(out) == expected


def test_of_two_commands_at_once_with_other_settings_one_is_refused(
    s3_store: Store, photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Both have seen an empty bucket before the first of them writes: the store decides."""
    s3_store.proxy.reset()
    url = f"{s3_store.url}/either"
    late = plan(photos, url, **{**CHANGES, "seed": 4})
    assert run(photos, url, *OPTIONS).exit_code == 0
    with pytest.raises(UserError, match="with other settings"):
        late.build.take()
    assert objects(url) == expected
    url = f"{s3_store.url}/race"
    both = [
        start_preprocess(photos, url, *OPTIONS, "--seed", seed, **s3_store.environment)
        for seed in (3, 4)
    ]
    statuses = [command.wait() for command in both]
    assert sorted(statuses) == [0, 2], [command.text() for command in both]
    if statuses[0] == 0:
        assert objects(url) == expected
    assert parse_manifest(paths.read(f"{url}/manifest.json"), "").seed == (3, 4)[statuses.index(0)]


def test_command_that_finds_the_work_done_by_another_one_is_content(
    store: Store, photos: Path, expected: dict[str, bytes]
) -> None:
    """The other one does all of its work between two requests of ours."""
    out = f"{store.url}/overtaken"
    manifests = []

    def overtake(number: int, method: str, path: str) -> str:
        # ours has just begun its first shard
        if method == "GET" and "index.jsonl" in path and not manifests:
            store.proxy.trouble = well
            manifests.append(preprocess(plan(photos, out, **CHANGES), progress=False))
        return PASS

    store.proxy.reset(overtake)
    result = run(photos, out, *OPTIONS)
    store.proxy.reset()
    assert result.exit_code == 0, result.stderr
    assert manifests[0].counts.written == 60
    assert objects(out) == expected


@pytest.mark.parametrize("damaged", [False, True])
def test_manifest_of_another_command_is_never_deleted(
    google_store: Store, photos: Path, expected: dict[str, bytes], damaged: bool
) -> None:
    """The other one does, or mends, all of it just before any of the requests by which ours looks
    for the manifest.
    """
    store = google_store
    for nth in range(1, 20):
        out = f"{store.url}/{'damaged' if damaged else 'new'}-{nth}"
        if damaged:
            for name, data in expected.items():
                paths.write(f"{out}/{name}", data[: len(data) - ("00002-of" in name)])
        seen, manifests = [], []

        def overtake(number: int, method: str, path: str) -> str:
            if method in ("HEAD", "GET") and "manifest.json" in path and not manifests:  # noqa: B023
                seen.append(path)  # noqa: B023
                if len(seen) == nth:  # noqa: B023
                    store.proxy.trouble = well
                    manifests.append(preprocess(plan(photos, out, **CHANGES), progress=False))  # noqa: B023
            return PASS

        store.proxy.reset(overtake)
        result = run(photos, out, *OPTIONS)
        deleted = [
            path
            for method, path in store.proxy.log
            if method == "DELETE" and "manifest.json" in path
        ]
        store.proxy.reset()
        assert result.exit_code == 0, result.stderr
        assert objects(out) == expected, nth
        assert len(deleted) == int(damaged), nth
        if not manifests:  # ours did not look as often
            break
    assert nth > 3


def test_listing_of_many_pages_asks_again_for_the_page_that_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    root = f"{store.url}/pages/a b?#%"
    names = {f"{number:03d} +é.png" for number in range(60)}
    paths.write(f"{root}0", b"beside it")
    for name in names:
        paths.write(f"{root}/{name}", b"x" * len(name))
    monkeypatch.setattr("schemas.storage.objects.PAGE", 3)
    failed = []

    def fail(number: int, method: str, path: str) -> str:
        """Every second request: more often in one listing than anything is asked again."""
        failed.extend([path] * (number % 2))
        return "503" if number % 2 else PASS

    store.proxy.reset(fail)
    listing = paths.entries(root)
    first = [next(listing) for _ in range(3)]
    asked = len(store.proxy.log)
    found = [*first, *listing]
    store.proxy.reset()
    assert sorted(entry.name for entry in found) == sorted(names)
    assert {entry.size for entry in found} == {len(name) for name in names}
    if store.scheme == "s3":  # Google's emulator gives all in one page
        assert asked == 2
        assert len(failed) == 20
    assert list(paths.entries(f"{store.url}/pages/nothing")) == []


def test_download_that_does_not_match_its_checksum_is_asked_for_again(
    google_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    download = pytest.importorskip("google.cloud.storage._media.requests.download")
    google_store.proxy.reset()
    url, local = f"{google_store.url}/torn", tmp_path / "torn"
    paths.write(url, b"whole")
    spoiled = []
    compare = download._helpers._get_expected_checksum

    def spoil(*arguments: Any, **options: Any) -> Any:
        expected, computed = compare(*arguments, **options)
        spoiled.append(expected)
        return (expected if len(spoiled) > until else "spoiled"), computed

    monkeypatch.setattr(download._helpers, "_get_expected_checksum", spoil)
    until = 2
    paths.download(url, local)
    assert local.read_bytes() == b"whole"
    assert len(spoiled) == 3
    until = 99
    with pytest.raises(OSError, match="the object store fails"):
        paths.download(url, local)


def test_shard_with_other_bytes_of_the_same_size_is_noticed_before_the_manifest(
    s3_store: Store, photos: Path, expected: dict[str, bytes]
) -> None:
    out, replaced = f"{s3_store.url}/replaced", []
    victim = min(name for name in expected if "array_record" in name)

    def replace(number: int, method: str, path: str) -> str:
        # the shard has just been published
        if method == "PUT" and "done/00000.json" in path and not replaced:
            replaced.append(victim)
            paths.write(f"{out}/{victim}", bytes(len(expected[victim])))
        return PASS

    s3_store.proxy.reset(replace)
    result = run(photos, out, *OPTIONS)
    s3_store.proxy.reset()
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(
        f"{out}/{victim} was lost or replaced meanwhile; repeat the command"
    )
    assert not paths.exists(f"{out}/manifest.json")
    assert run(photos, out, *OPTIONS).exit_code == 0
    assert objects(out) == expected


def test_object_that_was_copied_there_is_read_through(store: Store) -> None:
    directory = open_directory(f"{store.url}/copied")
    data = b"0123456789" * 1000
    digest = hashlib.sha256(data).hexdigest()
    with directory.staging() as folder:
        (folder / "a").write_bytes(data)
        directory.publish(folder / "a", "ours")
    directory.write("copied", data)
    store.proxy.reset()
    assert directory.matches("ours", len(data), digest)
    assert len(store.proxy.log) == 1
    assert not directory.matches("ours", len(data), "0" * 64)
    assert not directory.matches("ours", len(data) + 1, digest)
    assert directory.matches("copied", len(data), digest)
    assert not directory.matches("copied", len(data), "0" * 64)
    assert not directory.matches("nothing", len(data), digest)


def test_options_of_beam_reach_the_workers(s3_store: Store, photos: Path, tmp_path: Path) -> None:
    """Endpoint and credentials come after `--`; the environment says nothing, or what is wrong."""
    s3_store.proxy.reset()
    given = s3_store.environment
    options = [
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
        f"--s3_endpoint_url={given['AWS_ENDPOINT_URL']}",
        f"--s3_access_key_id={given['AWS_ACCESS_KEY_ID']}",
        f"--s3_secret_access_key={given['AWS_SECRET_ACCESS_KEY']}",
        f"--s3_region_name={given['AWS_DEFAULT_REGION']}",
    ]
    environment = {**given, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": ""}
    url = f"{s3_store.url}/options"
    command = start_preprocess(photos, url, *OPTIONS, "--", *options, **environment)
    assert command.wait() == 0, command.text()
    assert paths.exists(f"{url}/manifest.json")


def test_upload_of_a_killed_command_is_no_object(s3_store: Store) -> None:
    """What the tests here rest on: the proxy, like a real store, takes no half of a body."""
    host, port = s3_store.proxy.server_address[:2]
    assert isinstance(host, str)
    place = urlsplit(f"{s3_store.url}/torn-upload")
    head = f"PUT /{place.netloc}{place.path} HTTP/1.1\r\nHost: store\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection((host, port)) as connection:
        connection.sendall(f"{head}only this".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # it hangs up
    assert objects(f"{s3_store.url}/torn-upload") == {}
    assert not paths.exists(f"{s3_store.url}/torn-upload")
