"""Differences between datasets: every kind is counted, named and measured; order does not
matter.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowtrain.cli import main
from pipelines.curate.diff import NAMED, Difference, compare
from pipelines.dataset.anywhere import open_dataset
from schemas.layout import Layout
from schemas.manifest import SourceInfo
from schemas.record import encode_record
from tests.datasets import Row, build_dataset
from tests.pipelines.datasets import SPECS, VAE, make, replaced, tensors

KEYS = [f"k{number:02d}" for number in range(12)]
ITEMS = {key: ("ant", "bee")[number % 2] for number, key in enumerate(KEYS)}


def diff(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "diff", *map(str, arguments)], catch_exceptions=False)


def test_same_records_in_other_shards_and_order(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS], flips=True)
    make(
        tmp_path / "b",
        [dict(reversed(list(ITEMS.items())[:5])), {}, dict(list(ITEMS.items())[5:])],
        flips=True,
    )
    found = compare(open_dataset(str(tmp_path / "a")), open_dataset(str(tmp_path / "b")))
    assert found.same_records
    assert found.common == 12
    assert not found.same  # the source is another folder
    assert set(found.settings) == {"source.descriptor", "command"}
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert "the 12 records are the same" in result.stdout
    assert 'source.descriptor: "/photos/a" -> "/photos/b"' in result.stdout


def test_long_settings_are_shown_where_they_differ(tmp_path: Path) -> None:
    long = (
        "flowtrain preprocess /somewhere/far/away/in/a/deep/folder OUT --split train --resolution "
        "256"
    )
    source = SourceInfo(descriptor="/photos", split="train", digest="2" * 64)
    make(
        tmp_path / "a",
        [ITEMS],
        source=source,
        command=f"{long} --vae a --seed 0 --and --many --more --words --until --the --end",
    )
    make(tmp_path / "b", [ITEMS], source=source, command=f"{long} --vae b --seed 0")
    (line,) = (
        text
        for text in diff(tmp_path / "a", tmp_path / "b").stdout.splitlines()
        if text.startswith("command")
    )
    before, after = line.removeprefix("command: ").split(" -> ")
    assert before.startswith("...")
    assert "--vae a --seed 0" in before
    assert before.endswith("...")
    assert after.endswith('--vae b --seed 0"')


def test_values_are_cut_between_words_and_parts_of_paths(tmp_path: Path) -> None:
    folder = "/".join(["", *["münchen"] * 20])
    for name, end in (("a", "alt/a/b"), ("b", "neu/a/b")):
        make(
            tmp_path / name,
            [ITEMS],
            source=SourceInfo(descriptor=f"{folder}/{end}", split="train", digest="2" * 64),
        )
    (line,) = (
        text
        for text in diff(tmp_path / "a", tmp_path / "b").stdout.splitlines()
        if "descriptor" in text
    )
    before, after = line.removeprefix("source.descriptor: ").split(" -> ")
    assert re.fullmatch(r'\.\.\.(/?münchen)*/alt/a/b"', before)
    assert re.fullmatch(r'\.\.\.(/?münchen)*/neu/a/b"', after)


def test_of_the_command_only_what_no_setting_says(tmp_path: Path) -> None:
    command = "flowtrain preprocess {} OUT --resolution 8 --shards 1 --batch-size {} --seed {}"
    make(tmp_path / "a", [ITEMS], command=command.format("/photos/a", 32, 0))
    make(tmp_path / "b", [ITEMS], command=command.format("/photos/b", 16, 4), seed=4)
    assert diff(tmp_path / "a", tmp_path / "b").stdout.splitlines() == [
        'source.descriptor: "/photos/a" -> "/photos/b"',
        "seed: 0 -> 4",
        "batch-size: 32 -> 16",
        "the 12 records are the same",
    ]


def test_a_field_that_a_file_leaves_out_has_its_value_all_the_same(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS])
    make(tmp_path / "b", [ITEMS], vae=VAE.model_copy(update={"network": "AutoencoderTiny"}))
    assert "network" not in (tmp_path / "a" / "manifest.json").read_text()
    lines = diff(tmp_path / "a", tmp_path / "b").stdout.splitlines()
    assert 'vae.network: "AutoencoderKL" -> "AutoencoderTiny"' in lines


def test_a_dataset_is_the_same_as_itself(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS])
    result = diff(tmp_path / "a", tmp_path / "a", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["same"]
    assert facts["records"]["common"] == 12


def test_every_kind_of_difference(tmp_path: Path) -> None:
    make(tmp_path / "a", [dict(list(ITEMS.items())[:7]), dict(list(ITEMS.items())[7:])])
    moved = {"k03": 0.25, "k09": 3.0, "k10": 0.5}
    changes = {key: {"mean": tensors(key)["mean"] + np.float16(by)} for key, by in moved.items()}
    others = {f"new{number}": "cat" for number in range(8)}
    kept = {key: label for key, label in ITEMS.items() if key not in ("k00", "k11")}
    kept |= {"k04": "cat"}
    vae = VAE.model_copy(update={"dtype": "bfloat16"})
    classes = ("bee", "cat", "ant")  # other numbers for the same names: no difference by itself
    mixed = dict(reversed([*others.items(), *kept.items()]))  # named in the order of A all the same
    make(tmp_path / "b", [mixed], classes=classes, changes=changes, vae=vae, seed=4)
    facts = json.loads(diff(tmp_path / "a", tmp_path / "b", "--json").stdout)
    records = facts["records"]
    assert records["only_a"] == {"count": 2, "first": ["k00", "k11"]}
    assert records["only_b"]["count"] == 8
    assert records["only_b"]["first"] == [f"new{7 - number}" for number in range(NAMED)]
    assert records["label"] == {"count": 1, "first": ["k04"]}
    assert records["tensors"] == {"count": 3, "first": ["k03", "k09", "k10"]}
    assert records["max_abs_difference"]["mean"] == pytest.approx(3.0, abs=0.01)
    assert records["max_abs_difference"]["logvar"] == 0
    assert facts["settings"]["vae.dtype"] == {"a": "float32", "b": "bfloat16"}
    assert facts["settings"]["seed"] == {"a": 0, "b": 4}
    text = diff(tmp_path / "a", tmp_path / "b").stdout
    assert 'vae.dtype: "float32" -> "bfloat16"' in text
    assert '8 records only in B: "new7", "new6", "new5", "new4", "new3" and 3 more' in text
    assert '3 records with other tensors: "k03", "k09", "k10" (at most mean 3, logvar 0)' in text


def test_classes_of_one_name_are_two_classes(tmp_path: Path) -> None:
    classes = ("crane", "dog", "crane")
    items = {f"k{label}": label for label in range(3)}
    make(tmp_path / "a", [items], classes=classes)
    make(tmp_path / "b", [{**items, "k2": 0}], classes=classes)
    make(tmp_path / "c", [{"k0": 0, "k1": 2, "k2": 1}], classes=("crane", "crane", "dog"))
    a, b, c = (open_dataset(str(tmp_path / name)) for name in "abc")
    assert compare(a, b).labels == Difference(1, ("k2",))
    assert not compare(a, c).labels.count


def test_mirrored_encodings_are_compared_too(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS], flips=True)
    manifest = make(tmp_path / "b", [ITEMS], flips=True)
    a, b = (open_dataset(str(tmp_path / name)) for name in "ab")
    assert compare(a, b).same_records
    records = [
        encode_record(r.key, r.label, r.tensors, SPECS) for r in b.records(manifest.shards[1])
    ]
    mirrored = tensors("k05", "train_flip")
    records[5] = encode_record(
        "k05", 1, {**mirrored, "logvar": mirrored["logvar"] + np.float16(0.5)}, SPECS
    )
    replaced(tmp_path / "b", manifest, 1, records)
    found = compare(a, open_dataset(str(tmp_path / "b")))
    assert found.tensors == Difference(1, ("k05",))
    assert found.largest == {"mean": 0.0, "logvar": pytest.approx(0.5, abs=0.01)}


def test_mirrored_encodings_that_only_one_has_are_a_setting(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS], flips=True)
    make(tmp_path / "b", [ITEMS], flips=False)
    for one, two in ("ab", "ba"):
        found = compare(open_dataset(str(tmp_path / one)), open_dataset(str(tmp_path / two)))
        assert set(found.settings["flips"]) == {True, False}
        assert found.same_records


def test_other_tensors_are_not_measured(tmp_path: Path) -> None:
    first = make(tmp_path / "a", [ITEMS])
    rows = [
        Row(key, first.classes.index(name), {"latent": tensors(key)["mean"]})
        for key, name in ITEMS.items()
    ]
    others = {"resolution": first.resolution, "classes": first.classes, "vae": VAE}
    build_dataset(tmp_path / "b", Layout.LATENT, first.shape, {"train": [rows]}, **others)
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert 'layout: "moments" -> "latent"' in result.stdout
    assert "12 records with other tensors: " in result.stdout
    assert "at most" not in result.stdout
    assert Difference(1, ("k05",)).to_text("only in A") == '1 record only in A: "k05"'


def test_trouble_is_two(tmp_path: Path) -> None:
    make(tmp_path / "a", [ITEMS])
    result = diff(tmp_path / "a", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "no such dataset directory" in result.stderr
    manifest = make(tmp_path / "b", [dict(list(ITEMS.items())[:5])])
    (tmp_path / "b" / manifest.shards[0].name).unlink()
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 2
    assert "the shard is missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1
