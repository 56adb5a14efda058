"""Names of shards: braces as a shell has them, patterns, folders."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.sources import shards
from pipelines.sources.shards import Places, expand
from tests.refusals import refused


@pytest.mark.parametrize(
    "pattern",
    [
        "a-{000000..000012}.tar",
        "{0..3}",
        "{08..11}",
        "{3..0}",
        "{-2..2}",
        "{0..10..5}",
        "{a..e..2}",
        "{x,y,}z",
        "{train-{00..02},val-{0..1}}.tar",
        "a{1..2}b{c,d}",
        "{single}",
        "{s{1..2}}",
        "{open",
        "close}{1..2}",
        "no",
    ],
)
def test_braces_are_those_of_bash(pattern: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert list(expand(pattern)) == said.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "train-000000.tar",
        "train-000001.tar",
        "val-000000.tar",
        "more/x.tar",
        "note.txt",
        ".hidden.tar",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def found(names: str, split: str = "train") -> list[str]:
    places = Places(names, "wds")
    listed = places.shards(split)
    assert all(Path(places.path(shard.place)).is_file() for shard in listed)
    again = Places(places.descriptor.partition(":")[2], "wds")
    assert [again.path(one.place) for one in listed] == [places.path(one.place) for one in listed]
    return [shard.name for shard in listed]


def test_files_folders_and_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    both = ["train-000000", "train-000001"]
    assert found("train-{000000..000001}.tar") == both
    assert found("train-*.tar") == both
    assert found("train-00000?.tar") == both
    assert found("train-00000[!1].tar") == both[:1]
    assert found("train-000000.tar,val-000000.tar") == ["train-000000", "val-000000"]
    assert found("{train,val}-000000.tar") == ["train-000000", "val-000000"]
    assert found("more") == ["x"]
    assert found("*/x.tar") == found("**/x.tar") == ["more/x"]
    assert found(str(folder)) == both, "of a folder the shards of the split"
    assert found(".", "val") == ["val-000000"]
    assert found("more,val-000000.tar") == ["x", "val-000000"]


def test_what_cannot_be_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(folder)
    assert "no shard given" in refused(lambda: Places(",", "wds"))
    assert refused(lambda: Places(f"{place}/a-{{0..1}}.tar", "wds")) == (
        f"{place}/a-0.tar: no such file or folder"
    )
    assert "no file of that pattern" in refused(lambda: found(f"{place}/test-*.tar"))
    assert "no split 'test'; it has train and validation" in refused(lambda: found(place, "test"))
    (folder / "empty").mkdir()
    assert "no .tar file in it" in refused(lambda: found(f"{place}/empty"))
    assert "two shards are called x.tar" in refused(lambda: found(f"{place}/more,{place}/more"))
    monkeypatch.setattr(shards, "MOST", 5)
    assert "stands for more than 5 files" in refused(lambda: Places("x-{0..5}.tar", "wds"))
