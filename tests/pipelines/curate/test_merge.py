"""A merged dataset equals the union of its parts, computed another way; it lives on like any other
dataset.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from click.testing import CliRunner, Result

from flowtrain.cli import main
from flowtrain.records.data import LatentReader
from pipelines.curate.merge import merge
from pipelines.curate.verify import verify
from pipelines.dataset.finished import LatentDataset
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, Manifest, read_manifest
from tests.pipelines.damage import flip, follow
from tests.pipelines.datasets import make, tensors
from tests.pipelines.running import contents

Parts = tuple[Path, Path]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Two datasets with mirrored encodings; the second one numbers the classes otherwise and has a
    class of its own.
    """
    make(
        tmp_path / "a",
        [{"a0": "ant", "a1": "bee"}, {}, {"a2": "ant"}],
        flips=True,
        rejects=["z", "b"],
    )
    make(
        tmp_path / "b",
        [{"b0": "bee", "b1": "cat"}],
        classes=("bee", "ant", "cat"),
        flips=True,
        rejects=["c"],
    )
    return tmp_path / "a", tmp_path / "b"


def test_a_merged_dataset_is_the_union_of_its_parts(parts: Parts, tmp_path: Path) -> None:
    a, b = parts
    out = tmp_path / "out"
    manifest = merge([str(a), str(b)], str(out))
    assert manifest == read_manifest(out)
    dataset = LatentDataset(out)
    expected = {"a0": "ant", "a1": "bee", "a2": "ant", "b0": "bee", "b1": "cat"}
    assert manifest.classes == ("ant", "bee", "cat")
    for split in ("train", "train_flip"):
        records = list(dataset.records(split))
        assert {record.key: manifest.classes[record.label] for record in records} == expected
        for record in records:
            for name, values in tensors(record.key, split).items():
                np.testing.assert_array_equal(record.tensors[name], values)
    assert manifest.counts.model_dump() == {
        "source": 8,
        "written": 5,
        "rejected": 3,
        "duplicate": 0,
    }
    rejected = [
        json.loads(line)["key"] for line in (out / "rejects.jsonl").read_text().splitlines()
    ]
    assert rejected == ["b", "c", "z"]
    mean = np.stack([tensors(key)["mean"] for key in expected]).astype(np.float64)
    noise = np.exp(np.stack([tensors(key)["logvar"] for key in expected]).astype(np.float64))
    np.testing.assert_allclose(manifest.channels.mean, mean.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(
        manifest.channels.std, np.sqrt(mean.var((0, 1, 2)) + noise.mean((0, 1, 2))), rtol=1e-12
    )
    assert manifest.reconstruction is not None
    assert manifest.reconstruction.records == 5
    assert [part.digest for part in manifest.parts or ()] == [
        read_manifest(part).digest() for part in parts
    ]
    assert manifest.command == f"flowtrain data merge {a} {b} OUT"
    assert sorted(path.name for path in out.iterdir() if path.name[0] == ".") == []


def test_shards_are_copied_as_they_are_unless_labels_move(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = merge(list(map(str, parts)), str(out))
    old = [shard.sha256 for part in parts for shard in read_manifest(part).split_shards("train")]
    new = [shard.sha256 for shard in manifest.split_shards("train")]
    assert new[:3] == old[:3]
    assert new[3] != old[3]
    assert [shard.name[-14:] for shard in manifest.split_shards("train")] == [
        f"{i:05d}-of-00004" for i in range(4)
    ]


def test_a_merged_dataset_is_verified_trained_on_opened_and_merged_again(
    parts: Parts, tmp_path: Path
) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    merge(list(map(str, parts)), str(out))
    assert not verify(str(out)).damaged
    make(tmp_path / "c", [{"c0": "cat"}], classes=("cat",), flips=True)
    manifest = merge([str(out), str(tmp_path / "c")], str(more))
    assert not verify(str(more)).damaged
    assert manifest.classes == ("ant", "bee", "cat")
    reader = LatentReader(more)
    assert [record.key for record in reader.read(range(6))] == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert [record.label for record in reader.read(range(6), mirrored=True)] == [0, 1, 0, 1, 2, 2]
    builder: Any = tfds.builder_from_directory(more)
    source = builder.as_data_source("train")
    assert [example["key"].decode() for example in source] == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert command("inspect", more).exit_code == 0
    pieces = merge([*map(str, parts), str(tmp_path / "c")], str(tmp_path / "once"))
    assert pieces.channels == manifest.channels  # exactly: sums are merged, not means
    assert [shard.sha256 for shard in pieces.shards] == [shard.sha256 for shard in manifest.shards]


def test_names_that_occur_twice_keep_their_labels(tmp_path: Path) -> None:
    classes = ("tench", "crane", "dog", "crane", "zebra")
    for name in "ab":
        make(tmp_path / name, [{f"{name}{label}": label for label in range(5)}], classes=classes)
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    manifest = merge([str(a), str(b)], str(out))
    assert manifest.classes == classes
    assert [record.label for record in LatentDataset(out).records()] == [*range(5), *range(5)]
    assert [s.sha256 for s in manifest.shards] == [
        read_manifest(part).shards[0].sha256 for part in (a, b)
    ]
    make(tmp_path / "c", [{"c0": "dog"}], classes=("dog", "eel"))
    for parts in ((a, b, tmp_path / "c"), (tmp_path / "c", a)):
        result = command("merge", *parts, tmp_path / "new")
        assert result.exit_code == 2
        assert f'2 classes of {a} are called "crane"' in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "new").exists()


def test_a_class_is_empty_that_no_part_has_a_record_of(tmp_path: Path) -> None:
    classes = ("ant", "bee", "cat", "dog")
    one = make(tmp_path / "a", [{"a0": "ant"}, {"a1": "cat"}], classes=classes)
    other = make(tmp_path / "b", [{"b0": "bee", "b1": "ant"}], classes=("dog", "bee", "ant"))
    assert (one.empty_classes, other.empty_classes) == ((1, 3), (0,))
    merged = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"))
    assert merged.classes == classes
    assert merged.empty_classes == (3,)


def test_splits_of_two_names_take_a_third(parts: Parts, tmp_path: Path) -> None:
    make(tmp_path / "c", [{"c0": "ant"}], split="test", flips=True)
    manifest = merge([str(parts[0]), str(tmp_path / "c")], str(tmp_path / "out"), "all")
    assert manifest.splits == ("all", "all_flip")
    assert manifest.command.endswith("OUT --split all")
    assert not verify(str(tmp_path / "out")).damaged


def test_a_key_in_two_parts_is_named(parts: Parts, tmp_path: Path) -> None:
    make(tmp_path / "c", [{"c0": "ant", "a2": "bee"}], flips=True)
    result = command("merge", *parts, tmp_path / "c", tmp_path / "out")
    assert result.exit_code == 2
    assert f'the key "a2" is in {parts[0]} and in {tmp_path / "c"}' in result.stderr
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    merge(list(map(str, parts)), str(tmp_path / "out"))  # the directory is still free


@pytest.mark.parametrize("label_moves", [False, True])
def test_a_damaged_part_is_named_and_nothing_is_finished(
    parts: Parts, tmp_path: Path, label_moves: bool
) -> None:
    victim = parts[int(label_moves)] / read_manifest(parts[int(label_moves)]).shards[0].name
    flip(victim, 8 * (victim.stat().st_size - 5))  # in the padding: no record is touched
    with pytest.raises(UserError, match=rf"{victim} is missing or damaged; `flowtrain data verify"):
        merge(list(map(str, parts)), str(tmp_path / "out"))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    flip(victim, 8 * (victim.stat().st_size - 5))
    merge(list(map(str, parts)), str(tmp_path / "out"))


def test_a_part_that_cannot_be_read_is_no_fault_of_the_output(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("pipelines.curate.merge.shutil.copyfile", refuse)
    with pytest.raises(
        UserError, match=rf"{parts[0]}/latents.*: cannot be read \(Permission denied\)"
    ):
        merge(list(map(str, parts)), str(tmp_path / "out"))


def test_other_mistakes(parts: Parts, tmp_path: Path) -> None:
    a, b = parts
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    bare = make(tmp_path / "bare", [{"c0": "ant"}], flips=True)
    (tmp_path / "bare" / MANIFEST_NAME).write_text(bare.model_copy(update={"files": ()}).to_json())
    for arguments, message in (
        ((a, tmp_path / "out"), "at least two"),
        ((a, b, b), "one of the datasets"),
        ((a, b, tmp_path / "full"), "not empty (thesis.txt)"),
        ((a, tmp_path / "nowhere", tmp_path / "out"), "no such dataset"),
        ((a, tmp_path / "bare", tmp_path / "out"), "no shards.jsonl"),
        ((a, b, tmp_path / "out", "--split", "a-b"), "letters, digits and underscores only"),
    ):
        result = command("merge", *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert contents(tmp_path / "full") == {"thesis.txt": b"x"}


def test_a_directory_belongs_to_one_merge(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(list(map(str, parts)), str(out))
    before = contents(out)
    with pytest.raises(UserError, match=r"holds another merge \(flowtrain data merge"):
        merge(list(map(str, parts[::-1])), str(out))
    merge(list(map(str, parts)), str(out))
    assert contents(out) == before


@pytest.mark.parametrize("after", [1, 3])
def test_kill_and_repeat(parts: Parts, tmp_path: Path, after: int) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    merge(list(map(str, parts)), str(undisturbed))
    # A pause after each shard, so that the kill falls between two of them.
    script = f"""
import time
from pipelines.curate.merge import merge
from pipelines.dataset import build
mark = build.write_marker
def slowly(*arguments):
    mark(*arguments)
    print("done", flush=True)
    time.sleep(0.5)
build.write_marker = slowly
merge({list(map(str, parts))!r}, {str(out)!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    for _ in range(after):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (out / MANIFEST_NAME).exists()
    first = next(iter(sorted(out.glob("latents-train.array_record*"))))
    time = first.stat().st_mtime_ns
    merge(list(map(str, parts)), str(out))
    assert first.stat().st_mtime_ns == time
    assert contents(out) == contents(undisturbed)


def test_nothing_is_taken_over_from_another_merge_that_was_killed(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = map(str, parts)
    out, clashing = tmp_path / "out", str(tmp_path / "clashing")
    make(tmp_path / "clashing", [{"c0": "ant", "a2": "bee"}], flips=True)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.dataset.build.finish_dataset", die)
        with pytest.raises(KeyboardInterrupt):
            merge([a, b], str(out))
    for path in out.glob("*"):  # as `rm -rf out/*`: the hidden folder stays
        if path.name != ".work":
            path.unlink()
    with pytest.raises(UserError, match='the key "a2" is in'):
        merge([a, clashing], str(out))


def test_results_that_are_not_those_of_the_manifest_are_not_believed(
    parts: Parts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = merge(list(map(str, parts)), str(out))
    before = contents(out)
    text = (out / "shards.jsonl").read_text()
    (out / "shards.jsonl").write_text(text.replace('"positions":', '"positions":1', 1))
    (out / manifest.shards[1].name).unlink()
    merge(list(map(str, parts)), str(out))
    assert contents(out) == before


def test_printed_commands_bring_every_file_back(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(list(map(str, parts)), str(out))
    whole = contents(out)
    for name in whole:
        copy = Path(shutil.copytree(out, tmp_path / "copies" / name))
        flip(copy / name, 4 * len(whole[name]) if name != "merge.json" else 8 * 20)
        report = verify(str(copy))
        assert [damage.file for damage in report.damaged] == [name]
        follow(report.commands)
        assert contents(copy) == whole, name


def test_json(parts: Parts, tmp_path: Path) -> None:
    result = command("merge", *parts, tmp_path / "out", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    manifest: Manifest = read_manifest(tmp_path / "out")
    assert (facts["records"], facts["parts"], facts["digest"]) == (5, 2, manifest.digest())
