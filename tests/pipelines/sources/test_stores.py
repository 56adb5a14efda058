"""Sources on object stores, against servers on loopback: the same items and pixels as locally, in
few requests.
"""

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipelines.preprocess.index import build_index
from pipelines.sources import Item, Source, open_source
from schemas.errors import UserError
from schemas.storage import paths, retries
from schemas.storage.temporary import sweep_temporary
from tests.pipelines.servers import Store, now_and_then
from tests.pipelines.sources.miniature import IMAGES, SYNSETS, Miniature, add, jpeg, png
from tests.pipelines.sources.prepared import make_builder, make_parquet, make_saved, make_zip


@pytest.fixture(params=["s3_store", "google_store"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    found: Store = request.getfixturevalue(request.param)
    found.proxy.reset()
    yield found
    found.proxy.reset()


@pytest.fixture
def place(store: Store, request: pytest.FixtureRequest) -> str:
    """A URL of its own."""
    return f"{store.url}/{request.node.originalname}"


def facts(items: Iterator[Item]) -> set[tuple[str, int, int, str]]:
    return {(item.key, item.label, item.size, item.group) for item in items}


def same(one: Source, other: Source) -> int:
    """Check that two sources hold the same; how many items."""
    assert one.classes == other.classes
    assert facts(one.index()) == facts(other.index())
    expected = {item.key: item for item in other.index()}
    for item in list(one.index())[:10]:
        np.testing.assert_array_equal(one.read(item).pixels, other.read(expected[item.key]).pixels)
    return len(expected)


def gets(store: Store) -> int:
    return sum(method == "GET" for method, _ in store.proxy.log)


def test_folder(store: Store, place: str, tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2 ž?#.png", "dog/3.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
        paths.write(f"{place}/{name}", png())
    paths.write(f"{place}/.hidden/a.png", b"x")
    assert same(open_source(place, "train"), open_source(str(tmp_path), "train")) == 3
    with pytest.raises(UserError, match="no image file in it"):
        list(open_source(f"{place}/nowhere", "train").index())


def test_splits_lists_and_folders_of_archives(store: Store, place: str, tmp_path: Path) -> None:
    labels = b'{"labels": [["0/1.png", 2], ["0/2.png", 0]]}'
    files = {
        "set/train/0/1.png": png(),
        "set/train/0/2.png": png("blue"),
        "set/train/dataset.json": labels,
        "set/val/1.png": png(),
        "set/val/metadata.csv": b"file_name,label\n1.png,ant\n",
        "set/notes.txt": b"x",
    }
    for name, data in files.items():
        paths.write(f"{place}/{name}", data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    paths.write(f"{place}/x.zip", make_zip(tmp_path / "x.zip", files).read_bytes())
    local = open_source(f"{tmp_path}/set", "train")
    assert local.classes == ("0", "1", "2")
    for name in (f"{place}/set", f"zip:{place}/x.zip!set", f"zip:{place}/x.zip!set/train"):
        remote = open_source(name, "train")
        assert same(remote, local) == 2
        assert same(open_source(remote.descriptor, "train"), local) == 2
    (remark,) = open_source(f"{place}/set", "train").remarks()
    assert remark == "1 file that is no image was left out: .txt 1"
    assert open_source(f"zip:{place}/x.zip!set", "val").classes == ("ant",)
    with pytest.raises(UserError, match=r"no folder sets in it; there is set$"):
        list(open_source(f"zip:{place}/x.zip!sets", "train").index())


def test_tar_of_tars_with_the_devkit(store: Store, place: str, miniature: Miniature) -> None:
    for path in (miniature.train, miniature.devkit):
        paths.write(f"{place}/{path.name}", path.read_bytes())
    remote = open_source(
        f"tar:{place}/{miniature.train.name},{place}/{miniature.devkit.name}", "train"
    )
    store.proxy.reset()
    assert len(list(remote.index())) == SYNSETS * IMAGES
    # small ones here: at most two requests a member
    assert gets(store) < SYNSETS * (2 * IMAGES + 3)
    assert same(remote, open_source(f"tar:{miniature.train}", "train")) == SYNSETS * IMAGES


def test_archive_packed_anew_with_the_same_members_is_noticed(
    store: Store, place: str, tmp_path: Path
) -> None:
    def pack(names: Sequence[str]) -> str:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                data = png()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        paths.write(f"{place}/x.tar", (tmp_path / "x.tar").read_bytes())
        return build_index(open_source(f"tar:{place}/x.tar", "train").index(), 0).state

    # within one second, too
    assert pack(["cat/1.png", "cat/2.png"]) != pack(["cat/2.png", "cat/1.png"])


def test_a_read_is_one_request(store: Store, place: str, miniature: Miniature) -> None:
    paths.write(f"{place}/x.tar", miniature.train.read_bytes())
    source = open_source(f"tar:{place}/x.tar", "train")
    items = list(source.index())[:7]
    store.proxy.reset()
    again = open_source(source.descriptor, "train")  # as a worker does
    for item in items:
        again.read(item)
    assert gets(store) == len(store.proxy.log) == 7


def test_many_small_members_take_few_requests(store: Store, place: str) -> None:
    data = jpeg(np.random.default_rng(0))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(2000):
            add(archive, f"cat/{number}.jpg", data)
    paths.write(f"{place}/x.tar", buffer.getvalue())
    store.proxy.reset()
    assert len(list(open_source(f"tar:{place}/x.tar", "train").index())) == 2000
    assert gets(store) < 25


def test_headers_between_large_members_take_little(store: Store, place: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(50):
            add(archive, f"cat/{number}.jpg", bytes(100_000))
    paths.write(f"{place}/x.tar", buffer.getvalue())
    asked = []
    whole = paths.read

    def counted(path: str, offset: int = 0, length: int = -1) -> bytes:
        asked.append(length)
        return whole(path, offset, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "read", counted)
        assert len(list(open_source(f"tar:{place}/x.tar", "train").index())) == 50
    assert len(asked) <= 53
    assert sum(asked) < 400_000  # of five million


def test_zip_and_parquet(store: Store, place: str, miniature: Miniature, tmp_path: Path) -> None:
    contents = {
        str(path.relative_to(miniature.folder)): path.read_bytes()
        for path in miniature.folder.rglob("*.JPEG")
    }
    local = make_zip(tmp_path / "x.zip", contents)
    paths.write(f"{place}/x.zip", local.read_bytes())
    store.proxy.reset()
    remote = open_source(f"zip:{place}/x.zip", "train")
    assert len(list(remote.index())) == SYNSETS * IMAGES
    assert gets(store) < 6
    assert same(remote, open_source(f"zip:{local}", "train")) == SYNSETS * IMAGES
    for number in range(2):
        path = make_parquet(
            tmp_path / f"hub/train-{number:05d}-of-00002.parquet",
            list(contents.values())[:9],
            [0] * 9,
            ["cat"],
        )
        paths.write(f"{place}/hub/{path.name}", path.read_bytes())
    one, other = (
        open_source(f"parquet:{root}", "train") for root in (f"{place}/hub", tmp_path / "hub")
    )
    assert same(one, other) == 18
    assert one.fingerprint == other.fingerprint
    saved = make_saved(tmp_path / "saved/train", list(contents.values())[:9])
    for path in saved.iterdir():
        paths.write(f"{place}/saved/train/{path.name}", path.read_bytes())
    one, other = (
        open_source(f"parquet:{root}", "train") for root in (f"{place}/saved", tmp_path / "saved")
    )
    assert same(one, other) == 9
    assert one.fingerprint == other.fingerprint


def test_shards_with_labels_in_a_request_a_sample(store: Store, place: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:06d}.tar", "w") as archive:
            for sample in range(20):
                image = jpeg(rng) + rng.bytes(50_000)
                add(archive, f"{sample:03d}.jpg", image)
                add(archive, f"{sample:03d}.cls", str(sample % 3).encode())
                add(archive, f"{sample:03d}.json", b'{"label": 0}')
    (tmp_path / "val-000000.tar").write_bytes((tmp_path / "train-000000.tar").read_bytes())
    for path in tmp_path.iterdir():
        paths.write(f"{place}/{path.name}", path.read_bytes())
    local = open_source(f"wds:{tmp_path}", "train")
    for names in (place, f"{place}/train-*.tar", f"{place}/train-{{000000..000001}}.tar"):
        store.proxy.reset()
        remote = open_source(f"wds:{names}", "train")
        assert len(list(remote.index())) == 40
        assert gets(store) < 2 * (20 + 6)  # at most one a sample, and a few to begin a shard
        assert same(remote, local) == 40


def test_builder(store: Store, place: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    local = make_builder(
        tmp_path, features, [{"image": jpeg(rng), "label": row % 2} for row in range(7)]
    )
    for path in local.iterdir():
        paths.write(f"{place}/tiny/1.0.0/{path.name}", path.read_bytes())
    one, other = (open_source(f"tfds:{root}", "train") for root in (f"{place}/tiny/1.0.0", local))
    assert same(one, other) == 7
    assert one.fingerprint == other.fingerprint
    assert [one.read(item).label for item in one.index()] == [row % 2 for row in range(7)]
    paths.delete(f"{place}/tiny/1.0.0/features.json")
    with pytest.raises(UserError, match=r"no features\.json in it"):
        list(open_source(one.descriptor, "train").index())
    with pytest.raises(UserError, match=r"no dataset_info\.json in it"):
        list(open_source(f"tfds:{place}/nothing", "train").index())


@pytest.mark.parametrize(
    ("module", "name"),
    [("schemas.storage.objects", "S3Store.download"), ("pipelines.sources.tfds_builder", "_read")],
)
def test_what_a_killed_reader_of_a_builder_leaves_is_swept(
    s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    local = make_builder(
        tmp_path / "local", features, [{"image": jpeg(np.random.default_rng(0)), "label": 0}]
    )
    url = f"{s3_store.url}/killed-reader/tiny/1.0.0"
    s3_store.proxy.reset()
    for path in local.iterdir():
        paths.write(f"{url}/{path.name}", path.read_bytes())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = f"""
import os, signal, {module}
from pipelines.sources import open_source
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = die
source = open_source("tfds:{url}", "train")
source.read(next(iter(source.index())))
"""
    environment = {**os.environ, **s3_store.environment, "TMPDIR": str(temporary)}
    died = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert list(temporary.iterdir())
    sweep_temporary()
    assert list(temporary.iterdir()) == []


def test_through_trouble(
    store: Store, place: str, miniature: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    monkeypatch.setattr(retries, "ATTEMPTS", 15)
    paths.write(f"{place}/x.tar", miniature.train.read_bytes())
    store.proxy.reset(now_and_then(0.2, seed=3))
    assert same(
        open_source(f"tar:{place}/x.tar", "train"), open_source(f"tar:{miniature.train}", "train")
    )


def test_what_is_not_there_is_told_in_one_line(store: Store, place: str) -> None:
    for kind in ("tar", "zip", "parquet"):
        with pytest.raises(UserError, match=f"{place}/x.{kind}: ") as caught:
            list(open_source(f"{kind}:{place}/x.{kind}", "train").index())
        assert "\n" not in str(caught.value)
