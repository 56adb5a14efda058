"""Datasets brought from object stores: the same bytes, checked, however often that was
interrupted.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from flowtrain.cli import main
from flowtrain.records.reader import LatentReader
from pipelines.curate.verify import verify
from pipelines.dataset.download import stage, staged_bytes
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, FileInfo, read_manifest, write_manifest
from schemas.run import read_run
from schemas.sealed import seal
from schemas.storage import paths, retries
from tests.pipelines.datasets import make
from tests.pipelines.running import contents
from tests.pipelines.servers import PASS, Store, now_and_then

KEYS = [[f"{shard}-{number}" for number in range(4)] for shard in range(5)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A dataset with mirrored shards and a file that vouches for itself."""
    (tmp_path / "made").mkdir()
    where = tmp_path / "made" / "latents"
    manifest = make(where, [dict.fromkeys(keys, "ant") for keys in KEYS], flips=True)
    (where / "settings.json").write_text(seal(json.dumps({"seed": 0}, indent=2) + "\n"))
    write_manifest(where, manifest.model_copy(update={"sealed": ("settings.json",)}))
    return where


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two attempts are short."""
    monkeypatch.setattr(retries, "PAUSE", 0.001)


def put(dataset: Path, url: str) -> str:
    for name, data in contents(dataset).items():
        paths.write(paths.join(url, name), data)
    return url


def downloaded(store: Store) -> list[str]:
    """Names of the shards whose bytes were asked for."""
    asked = [unquote(path.partition("?")[0]) for method, path in store.proxy.log if method == "GET"]
    return sorted(path.rpartition("/")[2] for path in asked if "array_record" in path)


def test_a_staged_dataset_has_the_bytes_of_the_original(
    store: Store, made: Path, tmp_path: Path
) -> None:
    url = put(made, f"{store.url}/staged")
    paths.write(f"{url}/notes.txt", b"not of the dataset")
    told: list[int] = []
    copy = stage(f"{url}/", tmp_path / "cache", told.append)
    assert copy.parent.parent == tmp_path / "cache"
    assert contents(copy) == contents(made)
    assert {path.name for path in copy.iterdir()} == {path.name for path in made.iterdir()}
    assert (
        sum(told)
        == staged_bytes(url)
        == sum(len(data) for data in contents(made).values())
        - sum((made / name).stat().st_size for name in (MANIFEST_NAME, "settings.json"))
    )
    assert not verify(str(copy)).damaged
    assert verify(str(copy)).foreign == ()
    assert len(LatentReader(copy)) == 20
    store.proxy.reset()
    assert stage(url, str(tmp_path / "cache"), told.append) == copy
    assert downloaded(store) == []


def test_the_train_command_brings_its_dataset(s3_store: Store, made: Path, tmp_path: Path) -> None:
    s3_store.proxy.reset()
    url = put(made, f"{s3_store.url}/trained")
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    words = [
        "train",
        url,
        "--workdir",
        str(workdir),
        "--cache-dir",
        str(cache),
        "--recipe",
        "debug",
        "--json",
    ]
    words += [
        "--set",
        "model.depth=1",
        "--set",
        "model.patch=1",
        "--set",
        "train.steps=1",
        "--validation",
        url,
    ]
    planned = CliRunner().invoke(main, [*words, "--dry-run"])
    assert planned.exit_code == 0, planned.stderr
    plan = json.loads(planned.stdout)["plan"]
    assert (plan["records"], plan["dataset"]) == (sum(map(len, KEYS)), url)
    assert (downloaded(s3_store), cache.exists(), workdir.exists()) == ([], False, False), (
        "a plan moves no records"
    )

    trained = CliRunner().invoke(main, words)
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["step"] == 1
    (copy,) = cache.glob("*/dataset")
    assert read_run(workdir).dataset.path == str(copy)
    assert contents(copy) == contents(made)
    # once for both
    assert downloaded(s3_store) == sorted(shard.name for shard in read_manifest(made).shards)
    assert "val_loss_ema" in (workdir / "metrics.jsonl").read_text()

    replayed = CliRunner().invoke(main, [*words, "--replay", "1", "--dry-run"])
    assert (replayed.exit_code, replayed.stdout.count('"key"')) == (0, 8), replayed.stderr


# Packages that an import does not find; the command, and the copy that it would train on.
WITHOUT = """
import importlib.abc, sys
from pathlib import Path
url, cache, *absent = sys.argv[1:]
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from flowtrain import elsewhere
from flowtrain.cli import main
words = ["train", url, "--workdir", f"{cache}/run", "--recipe", "debug", "--dry-run", "--json"]
main([*words, "--set", "train.steps=1", "--set", "model.patch=1"], standalone_mode=False)
print(elsewhere.stage(url, Path(cache), lambda size: None))
assert not {*absent} & sys.modules.keys()
"""


def without(packages: tuple[str, ...], url: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, url, str(cache), *packages],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_beam_trains_on_a_dataset_in_a_store(
    store: Store, made: Path, tmp_path: Path
) -> None:
    url = put(made, f"{store.url}/without-beam")
    result = without(("apache_beam",), url, tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    planned, _, copy = result.stdout.strip().rpartition("\n")
    assert json.loads(planned)["plan"]["dataset"] == url
    assert contents(Path(copy)) == contents(made)


def test_a_machine_without_a_vendors_client_is_told_so_in_one_line(tmp_path: Path) -> None:
    result = without(("boto3",), "s3://bucket/data", tmp_path / "cache")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    # whichever of its modules is asked for first
    assert line.startswith("Error: s3:// cannot be used here (No module named 'boto3")
    assert line.endswith("pip install 'flowtrain[cloud]'")


def test_a_store_that_fails_now_and_then_is_asked_again(
    store: Store, made: Path, tmp_path: Path, quick: None
) -> None:
    url = put(made, f"{store.url}/staging-failing")
    store.proxy.reset(now_and_then(0.2, seed=1))
    copy = stage(url, tmp_path / "cache")
    store.proxy.reset()
    assert contents(copy) == contents(made)


def test_a_store_that_fails_for_good_is_one_line_and_the_next_command_goes_on(
    store: Store, made: Path, tmp_path: Path, quick: None
) -> None:
    url = put(made, f"{store.url}/half")
    victim = "00002-of-00005"
    store.proxy.reset(
        lambda number, method, path: "503" if method == "GET" and victim in path else PASS
    )
    with pytest.raises(
        UserError,
        match=rf"{url}/.*{victim}: cannot be read \(the object store fails .*repeat the command$",
    ):
        stage(url, tmp_path / "cache")
    (copy,) = tmp_path.glob("cache/*/dataset")
    assert not (copy / MANIFEST_NAME).exists()
    there = {name for name in contents(copy) if "array_record" in name}
    store.proxy.reset()
    assert stage(url, tmp_path / "cache") == copy
    assert not there & {*downloaded(store)}
    assert contents(copy) == contents(made)
    # a copy that was whole is half-made again, and has no manifest
    min(copy.glob(f"*{victim}")).unlink()
    store.proxy.reset(
        lambda number, method, path: "503" if method == "GET" and victim in path else PASS
    )
    with pytest.raises(UserError, match="the object store fails"):
        stage(url, tmp_path / "cache")
    store.proxy.reset()
    assert not (copy / MANIFEST_NAME).exists()


def test_only_what_is_missing_is_fetched_again(store: Store, made: Path, tmp_path: Path) -> None:
    url = put(made, f"{store.url}/mended")
    copy = stage(url, tmp_path / "cache")
    lost, cut, flipped = sorted(copy.glob("*train.array_record*"))[:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(bytes(data))
    store.proxy.reset()
    told: list[int] = []
    stage(url, tmp_path / "cache", told.append)
    assert sum(told) == staged_bytes(url)
    assert {*downloaded(store)} == {path.name for path in (lost, cut, flipped)}
    assert contents(copy) == contents(made)


def test_a_damaged_object_is_named(store: Store, made: Path, tmp_path: Path) -> None:
    url = put(made, f"{store.url}/damaged")
    victim = min(made.glob("*train_flip*"))
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    paths.write(f"{url}/{victim.name}", bytes(data))
    with pytest.raises(UserError) as caught:
        stage(url, tmp_path / "cache")
    assert str(caught.value) == (
        f"{url}/{victim.name} is damaged (its bytes are not those of its checksum); `flowtrain "
        f"data verify {url}` says how to mend it"
    )
    paths.delete(f"{url}/{victim.name}")
    with pytest.raises(UserError, match=rf"{victim.name} is missing; `flowtrain data verify"):
        stage(url, tmp_path / "cache")
    (copy,) = tmp_path.glob("cache/*/dataset")
    assert not (copy / MANIFEST_NAME).exists()
    assert victim.name not in contents(copy)
    paths.write(f"{url}/{victim.name}", victim.read_bytes())
    paths.write(f"{url}/settings.json", b"{}")
    with pytest.raises(UserError, match=r"settings.json is damaged \(no digest at its end\)"):
        stage(url, tmp_path / "cache")
    paths.delete(f"{url}/settings.json")
    with pytest.raises(UserError, match=r"settings.json is missing; `flowtrain data verify"):
        stage(url, tmp_path / "cache")


STAGE = "import sys; from pipelines.dataset.download import stage; stage(sys.argv[1], sys.argv[2])"


def start(url: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAGE, url, str(cache)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment}
    )


def test_killed_half_way_and_repeated(s3_store: Store, made: Path, tmp_path: Path) -> None:
    s3_store.proxy.reset()
    url, cache = put(made, f"{s3_store.url}/staging-killed"), tmp_path / "cache"
    reached, go = threading.Event(), threading.Event()

    def hold(number: int, method: str, path: str) -> str:
        """The last shard of the second split is not answered before the process is dead."""
        if method == "GET" and "train_flip" in path and "00004-of" in path:
            reached.set()
            go.wait(60)
        return PASS

    s3_store.proxy.reset(hold)
    process = start(url, cache, **s3_store.environment)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    go.set()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    (copy,) = cache.glob("*/dataset")
    there = contents(copy)
    assert MANIFEST_NAME not in there
    s3_store.proxy.reset()
    assert stage(url, cache) == copy
    assert contents(copy) == contents(made)
    fetched = downloaded(s3_store)
    assert "latents-train_flip.array_record-00004-of-00005" in fetched
    assert not there.keys() & {*fetched}


def test_of_two_at_once_one_fetches_and_the_other_waits(
    s3_store: Store, made: Path, tmp_path: Path
) -> None:
    s3_store.proxy.reset()
    url = put(made, f"{s3_store.url}/staging-both")
    s3_store.proxy.reset()
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: stage(url, tmp_path / "cache"), range(4)))
    asked = downloaded(s3_store)
    assert len(asked) == len(set(asked)) == 10
    (copy,) = copies
    assert contents(copy) == contents(made)


def test_another_dataset_at_the_same_place_is_another_copy(
    s3_store: Store, made: Path, tmp_path: Path
) -> None:
    s3_store.proxy.reset()
    url = put(made, f"{s3_store.url}/renewed")
    first = stage(url, tmp_path / "cache")
    other = tmp_path / "other" / "latents"
    other.parent.mkdir()
    make(other, [{"x": "bee"}])
    put(other, url)
    second = stage(url, tmp_path / "cache")
    assert contents(second) == contents(other)
    assert contents(first) == contents(made)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_names_outside_of_the_dataset_are_refused(
    s3_store: Store, made: Path, tmp_path: Path, name: str
) -> None:
    s3_store.proxy.reset()
    outside = FileInfo.model_construct(name=name, bytes=0, sha256="0" * 64)
    write_manifest(made, read_manifest(made).model_copy(update={"files": (outside,)}))
    with pytest.raises(UserError, match="is no file within the dataset's directory"):
        stage(put(made, f"{s3_store.url}/outside"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_is_no_dataset_is_one_line(s3_store: Store, tmp_path: Path) -> None:
    s3_store.proxy.reset()
    with pytest.raises(UserError, match=r"nothing: no manifest.json, so this is not a dataset"):
        stage(f"{s3_store.url}/staging-nothing", tmp_path / "cache")
    with pytest.raises(UserError, match=r"s3://nobody-has-this/data"):
        stage("s3://nobody-has-this/data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_room_is_one_line(
    s3_store: Store, made: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("size=400k")  # two shards find room there, ten do not
    s3_store.proxy.reset()
    url = put(made, f"{s3_store.url}/large")
    with pytest.raises(
        UserError,
        match=r"/large needs ([\d,]+) bytes more in .*, and 409,600 are free; make room, or",
    ) as full:
        stage(url, disk)
    assert f"{staged_bytes(url):,}" in str(full.value)
    monkeypatch.setattr("pipelines.dataset.download._check_room", lambda *arguments: None)
    with pytest.raises(
        UserError,
        match=rf"^cannot write {disk}/.* \(No space left on device\); make room and repeat",
    ):
        stage(url, disk)
    small_disk("size=8m")
    assert contents(stage(url, disk)) == contents(made)


def test_a_local_dataset_needs_no_copy(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="is no URL of an object store; a dataset on a local disk needs no copy"
    ):
        stage(str(made), tmp_path / "cache")
