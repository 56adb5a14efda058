import json

import numpy as np
import pytest

from schemas.errors import UserError
from schemas.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Normalization,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from schemas.sealed import digest_of, seal

CONTENT = {
    "layout": "moments",
    "split": "train",
    "resolution": 32,
    "crop": "adm",
    "tensors": {name: {"shape": [8, 8, 2], "dtype": "float16"} for name in ("mean", "logvar")},
    "classes": ["a", "b"],
    "source": {"descriptor": "somewhere", "split": "train", "digest": "00"},
    "vae": {
        "id": "v",
        "sha256": "11",
        "config_sha256": "33",
        "factor": 4,
        "latent_channels": 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    },
    "counts": {"source": 5, "written": 3, "rejected": 1, "duplicate": 1},
    "channels": {"mean": [1.0, 2.0], "std": [2.0, 4.0]},
    "shards": [{"name": "s", "split": "train", "records": 3, "bytes": 9, "sha256": "22"}],
    "seed": 0,
    "command": "flowtrain preprocess",
    "versions": {"flowtrain": "0"},
}


def shaped(shape):
    return {name: {"shape": shape, "dtype": "float16"} for name in ("mean", "logvar")}


def test_write_and_read_are_inverse_and_canonical(tmp_path):
    manifest = Manifest.model_validate(CONTENT)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_text() == manifest.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_digest_changes_with_any_shard_and_file():
    manifest = Manifest.model_validate(CONTENT)
    shards = [{**CONTENT["shards"][0], "sha256": "23"}]
    files = [{"name": "README.md", "bytes": 3, "sha256": "44"}]
    assert manifest.digest() == Manifest.model_validate(CONTENT).digest()
    for change in ({"shards": shards}, {"files": files}):
        assert manifest.digest() != Manifest.model_validate({**CONTENT, **change}).digest()


def test_the_file_ends_with_the_digest_of_all_before_it(tmp_path):
    manifest = Manifest.model_validate(CONTENT)
    write_manifest(tmp_path, manifest)
    text = (tmp_path / "manifest.json").read_text()
    assert list(json.loads(text))[-1] == "digest"
    assert json.loads(text)["digest"] == manifest.digest()


def test_any_flipped_bit_is_refused_in_one_line():
    data = Manifest.model_validate(CONTENT).to_json().encode()
    assert parse_manifest(data, "here") == Manifest.model_validate(CONTENT)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match="here: ") as error:
            parse_manifest(bytes(damaged), "here")
        assert "\n" not in str(error.value)


def test_a_manifest_that_was_written_otherwise_keeps_its_digest():
    """Another commit may have ordered or left out fields in another way; the dataset is the same
    one as ever.
    """
    manifest = Manifest.model_validate(CONTENT)
    content = dict(reversed(json.loads(manifest.canonical()).items()))
    text = json.dumps(content, indent=2) + "\n"
    read = parse_manifest(seal(text), "here")
    assert read.digest() == digest_of(text) != manifest.digest()
    assert read.to_json() == seal(text)
    assert read.model_copy().digest() == read.digest()
    changed = read.model_copy(update={"seed": 9})
    assert changed.digest() == manifest.model_copy(update={"seed": 9}).digest()


def test_normalizations():
    manifest = Manifest.model_validate(CONTENT)
    assert manifest.model_normalization().offset == (0.25, 0.25)
    assert manifest.model_normalization().scale == (0.5, 0.5)
    assert manifest.channel_normalization().scale == (0.5, 0.25)
    assert Manifest.model_validate({**CONTENT, "vae": None}).model_normalization().scale == (
        1.0,
        1.0,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "newer than"),
        ({"schema_version": 1}, "schema version 1, but this release reads 2; rebuild"),
        ({"schema_version": "x"}, "newer than"),
        ({"counts": {"source": 5, "written": 3, "rejected": 1, "duplicate": 0}}, "do not add up"),
        ({"layout": "pixels"}, "layout"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_manifests_are_one_line(tmp_path, change, message):
    content = {"schema_version": SCHEMA_VERSION, **CONTENT, **change}
    (tmp_path / "manifest.json").write_text(seal(json.dumps(content, indent=2) + "\n"))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../s", "a/../../s", "/etc/passwd", "", ".", "..", "a\0b"])
@pytest.mark.parametrize("field", ["shards", "files", "sealed"])
def test_a_file_outside_of_the_directory_is_no_part_of_a_dataset(field, name):
    (shard,) = CONTENT["shards"]
    entry = {"name": name, "bytes": 9, "sha256": "22"}
    entries = {"shards": {**shard, "name": name}, "files": entry, "sealed": name}
    content = {"schema_version": SCHEMA_VERSION, **CONTENT, field: [entries[field]]}
    with pytest.raises(UserError, match="is no file within the dataset's directory") as error:
        parse_manifest(seal(json.dumps(content, indent=2) + "\n"), "m")
    assert f"m: {field}.0" in str(error.value)


def test_a_file_in_a_folder_of_the_dataset_is_a_part_of_it():
    (shard,) = CONTENT["shards"]
    for name in ("train/s", "a..b", "..a", "ä b"):
        content = {**CONTENT, "shards": [{**shard, "name": name}]}
        assert Manifest.model_validate(content).shards[0].name == name


def test_missing_and_damaged(tmp_path):
    with pytest.raises(UserError, match="no such dataset directory"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a finished dataset"):
        read_manifest(tmp_path)
    for text in ("{", "[]", "{}", "\xff"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not a readable manifest"):
            read_manifest(tmp_path)


def test_a_normalization_and_its_inverse():
    random = np.random.default_rng(0)
    raw = random.normal(size=(3, 2, 2, 4)).astype(np.float32)
    normalization = Normalization(offset=(0.5, -1.0, 0.0, 2.0), scale=(0.2, 1.0, 3.0, 0.7))
    expected = (raw.astype(np.float64) - normalization.offset) * normalization.scale
    assert normalization.apply(raw).dtype == np.float32
    np.testing.assert_allclose(normalization.apply(raw), expected, atol=1e-6)
    np.testing.assert_allclose(normalization.undo(expected), raw, atol=1e-6)
    assert normalization.undo(expected.astype(np.float16)).dtype == np.float32


def test_one_normalization_after_another():
    first = Normalization(offset=(1.0, -2.0), scale=(2.0, 0.5))
    second = Normalization(offset=(3.0, 1.0), scale=(4.0, 8.0))
    both = first.then(second)
    raw = (5.0, 7.0)
    once = [(x - o) * k for x, o, k in zip(raw, first.offset, first.scale, strict=True)]
    twice = [(x - o) * k for x, o, k in zip(once, second.offset, second.scale, strict=True)]
    assert [
        (x - o) * k for x, o, k in zip(raw, both.offset, both.scale, strict=True)
    ] == pytest.approx(twice)
    assert first.then(Normalization.identity(2)) == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shards": [{**CONTENT["shards"][0], "records": 10**15}]}, "records in 9 bytes"),
        ({"vae": {**CONTENT["vae"], "scaling_factor": 0.0}}, "must not be zero"),
        ({"vae": {**CONTENT["vae"], "factor": 3}}, "tensors of shape"),
        ({"vae": {**CONTENT["vae"], "latent_channels": 3}}, "tensors of shape"),
        ({"resolution": 64}, "64 pixels and the VAE give"),
        ({"tensors": {"mean": CONTENT["tensors"]["mean"]}}, "are not those of moments"),
        ({"channels": {"mean": [1.0], "std": [2.0, 4.0]}}, "channels"),
        *(
            ({"tensors": shaped(shape)}, "height, width and channels")
            for shape in ([], [8, 8], [0, 8, 2], [8, 8, -2])
        ),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_together_are_refused(change, told):
    text = json.dumps({"schema_version": SCHEMA_VERSION, **CONTENT, **change}, indent=2) + "\n"
    with pytest.raises(UserError, match=told):
        parse_manifest(seal(text), "x")
