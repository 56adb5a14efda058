"""Damage of every kind is found, named, and mended by the commands that are printed; nothing else
is touched.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowtrain.cli import main
from pipelines.curate.verify import verify
from pipelines.preprocess.pipeline import preprocess
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, read_manifest, write_manifest
from schemas.record import encode_record
from schemas.sealed import seal
from tests.pipelines.damage import flip, follow
from tests.pipelines.datasets import SPECS, make, replaced, tensors
from tests.pipelines.running import contents, plan

BITS = 100


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with mirrored pixels, rejects, and every file that a dataset can have."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(photos, folder / "in")
    (folder / "in/ant/bad.png").write_text("no image")
    task = plan(
        folder / "in", folder / "out", resolution=8, flips=True, shards=3, max_bad_fraction=0.1
    )
    preprocess(task, progress=False)
    return folder / "out"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)], catch_exceptions=False)


def test_whole_dataset(whole: Path) -> None:
    report = verify(str(whole))
    assert (report.damaged, report.foreign, report.commands) == ((), (), ())
    assert report.files == len(contents(whole))
    assert report.bytes == sum(map(len, contents(whole).values()))
    assert report.records == 120
    result = command("verify", whole)
    assert result.exit_code == 0
    assert "is whole: 14 files" in result.stdout
    assert "120 records" in result.stdout


def test_any_flipped_bit_in_any_file_is_named(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    names = sorted(contents(copy))
    rng = np.random.default_rng(3)
    for _ in range(BITS):
        path = copy / names[rng.integers(len(names))]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        assert [damage.file for damage in verify(str(copy)).damaged] == [path.name], bit
        flip(path, bit)
    assert not verify(str(copy)).damaged


@pytest.mark.parametrize("how", ["missing", "short", "long", "flipped"])
def test_printed_commands_bring_every_file_back(whole: Path, tmp_path: Path, how: str) -> None:
    names = sorted(contents(whole))
    for name in names if how in ("missing", "flipped") else names[-5:]:
        if (how, name) == ("missing", MANIFEST_NAME):
            continue  # a dataset without is told to be unfinished
        copy = Path(shutil.copytree(whole, tmp_path / name))
        data = (copy / name).read_bytes()
        match how:
            case "missing":
                (copy / name).unlink()
            case "short":
                (copy / name).write_bytes(data[:-1])
            case "long":
                (copy / name).write_bytes(data + b"\n")
            case "flipped":
                flip(copy / name, 4 * len(data))
        report = verify(str(copy))
        assert [damage.file for damage in report.damaged] == [name]
        times = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.array_record*")}
        follow(report.commands)
        assert contents(copy) == contents(whole), name
        rebuilt = [
            shard for shard, time in times.items() if (copy / shard).stat().st_mtime_ns != time
        ]
        if "array_record" in name:  # the shard, and the mirrored one that is made with it
            assert {shard[-14:] for shard in rebuilt} <= {name[-14:]}
        elif name != "shards.jsonl":
            assert rebuilt == []


def test_several_damaged_files_are_mended_together(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    victims = sorted(contents(copy))[::3]
    assert len(victims) > 3
    for name in victims:
        if name != MANIFEST_NAME:
            flip(copy / name, 77)
    result = command("verify", copy)
    assert result.exit_code == 1
    for name in victims:
        assert name == MANIFEST_NAME or f"  {name}: " in result.stdout
    report = json.loads(command("verify", copy, "--json").stdout)
    assert not report["whole"]
    assert [damage["file"] for damage in report["damaged"]] == [
        name for name in victims if name != MANIFEST_NAME
    ]
    assert all(line in result.stdout for line in report["commands"])
    follow(report["commands"])
    assert contents(copy) == contents(whole)


def test_foreign_files_are_told_and_are_no_damage(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / "notes").mkdir()
    (copy / "notes" / "mine.txt").write_text("x")
    result = command("verify", copy)
    assert result.exit_code == 0
    assert "not part of the dataset: notes/mine.txt" in result.stdout


def test_what_is_no_finished_dataset_is_a_mistake(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / MANIFEST_NAME).unlink()
    (tmp_path / "newer").mkdir()
    manifest = (
        read_manifest(whole).canonical().replace('"schema_version": 2', '"schema_version": 3')
    )
    (tmp_path / "newer" / MANIFEST_NAME).write_text(seal(manifest))
    for where, message in (
        (copy, "not a finished"),
        (tmp_path / "x", "no such"),
        (tmp_path / "newer", "upgrade"),
    ):
        result = command("verify", where)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_settings_of_another_dataset_are_noticed(whole: Path, photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    preprocess(plan(photos, tmp_path / "other"), progress=False)
    shutil.copy(tmp_path / "other" / "settings.json", copy)
    assert [damage.file for damage in verify(str(copy)).damaged] == ["settings.json"]


def raw(key: str, label: int = 0, **changes: np.ndarray) -> bytes:
    """An encoded record; what `encode_record` would refuse is put in afterwards."""
    values = tensors(key)
    plain = encode_record(key, label, values, SPECS)
    for name, array in changes.items():
        plain = plain.replace(values[name].tobytes(), array.tobytes())
    return plain


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (
            [raw("k2"), raw("k3", mean=np.full((2, 2, 4), np.nan, np.float16))],
            'record 1: mean of "k3" is not finite',
        ),
        ([raw("k2"), raw("k3", 2)], 'record 1: label 2 of "k3" is none of the classes'),
        ([raw("k2"), raw("k3", -1)], "label -1"),
        ([raw("k2"), b"no example"], "record 1: not a tf.train.Example"),
        ([raw("k2"), raw("k0")], 'key "k0" is also in latents-train.array_record-00000-of-00002'),
        ([raw("k2"), raw("k2")], 'key "k2" is also in latents-train.array_record-00001-of-00002'),
    ],
)
def test_records_are_looked_at_although_the_checksums_are_right(
    tmp_path: Path, records: list[bytes], problem: str
) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{"k0": "ant", "k1": "bee"}, {"k2": "ant", "k3": "bee"}])
    assert not verify(str(out)).damaged
    replaced(out, manifest, 1, records)
    (damage,) = verify(str(out)).damaged
    assert damage.file.endswith("00001-of-00002")
    assert problem in damage.problem


@pytest.mark.parametrize("results", [True, False])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_are_those_of_the_records(tmp_path: Path, name: str, results: bool) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{f"k{n}": "ant" for n in range(9)}, {}, {"z": "bee"}], flips=True)
    files = tuple(info for info in manifest.files if results or info.name != "shards.jsonl")
    manifest = manifest.model_copy(update={"files": files})
    for factor in (1 + 1e-8, 0.99):
        values = (
            *getattr(manifest.channels, name)[:-1],
            factor * getattr(manifest.channels, name)[-1],
        )
        channels = manifest.channels.model_copy(update={name: values})
        write_manifest(out, manifest.model_copy(update={"channels": channels}))
        if factor > 1:
            assert not verify(str(out)).damaged
    (damage,) = verify(str(out)).damaged
    assert damage.file == ("shards.jsonl" if results else MANIFEST_NAME)
    assert "not those of the records" in damage.problem


def test_wrong_sums_are_found_and_made_again(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    manifest = read_manifest(copy)
    channels = manifest.channels.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    write_manifest(copy, manifest.model_copy(update={"channels": channels}))
    report = verify(str(copy))
    assert [damage.file for damage in report.damaged] == ["shards.jsonl"]
    follow(report.commands)
    assert contents(copy) == contents(whole)


@pytest.mark.parametrize("keys", [("k1", "k0"), ("k0", "kX")])
def test_mirrored_split_has_the_same_keys_in_the_same_order(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{"k0": "ant", "k1": "bee"}], flips=True)
    assert not verify(str(out)).damaged
    replaced(out, manifest, 1, [raw(key, label) for label, key in enumerate(keys)])
    (damage,) = verify(str(out)).damaged
    assert damage.file == manifest.shards[1].name
    assert "another order" in damage.problem


def test_counts_are_held_against_the_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{"k0": "ant", "k1": "bee"}])
    shards = (manifest.shards[0].model_copy(update={"records": 3}),)
    write_manifest(out, manifest.model_copy(update={"shards": shards}))
    assert [damage.problem for damage in verify(str(out)).damaged] == ["2 records instead of 3"]


def test_unreadable_storage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset directory"):
        verify(str(tmp_path / "nowhere"))
