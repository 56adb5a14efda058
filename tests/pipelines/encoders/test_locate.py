"""Which directory, which files and which digest a VAE's name stands for. The hub:
test_vae_hub.py.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.encoders.locate import (
    EMBEDDED_DIRECTORY,
    find_vae,
    read_vae_config,
    vae_digest,
    weight_files,
)
from pipelines.encoders.weight_files import INDEX_FILE, WEIGHTS_FILE
from schemas.errors import UserError


@pytest.fixture
def saved(tiny_vae: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vae, tmp_path / "vae"))


def all_of_it(name: str, revision: str | None) -> None:
    directory = find_vae(name, revision).directory
    read_vae_config(directory)
    weight_files(directory)


def fails(name: str | Path, revision: str | None = None) -> str:
    """The one line that finding a VAE and its files ends with."""
    with pytest.raises(UserError) as caught:
        all_of_it(str(name), revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_is_named_so_that_it_is_found_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    found = find_vae("vae")
    assert (found.name, found.directory, found.revision) == (str(saved), saved, None)
    assert find_vae(found.name) == found
    assert find_vae("embedded").directory == EMBEDDED_DIRECTORY


def test_a_directory_goes_before_a_hub_id(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    name = f"{saved.parent.name}/vae"
    assert find_vae(name).name == str(saved)


def test_of_a_whole_pipeline_the_vae_is_taken(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert find_vae(str(tmp_path)).name == str(saved)


def test_wrong_directories_say_what_to_do(saved: Path, tmp_path: Path) -> None:
    assert "no such VAE directory" in fails(tmp_path / "nothing")
    assert "org/name" in fails("a/b/c")
    assert "'embedded', or 'none'" in fails("nope")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(tmp_path / "empty")
    assert "is a file" in fails(saved / WEIGHTS_FILE)
    assert "leave --vae-revision out" in fails(saved, "main")
    assert "leave --vae-revision out" in fails("embedded", "main")


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / WEIGHTS_FILE).rename(saved / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin" in fails(saved)
    (saved / "diffusion_pytorch_model.bin").unlink()
    assert "no safetensors file" in fails(saved)


def test_several_weight_files_are_not_guessed_between(saved: Path) -> None:
    digest = vae_digest(saved)
    (saved / WEIGHTS_FILE).rename(saved / "a.safetensors")
    assert weight_files(saved) == (saved / "a.safetensors",)
    assert vae_digest(saved) == digest
    shutil.copy(saved / "a.safetensors", saved / "b.safetensors")
    assert "several weight files (a.safetensors, b.safetensors)" in fails(saved)


def test_digest_of_one_file_and_of_several_is_what_sha256sum_says(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    assert vae_digest(saved) == hashlib.sha256(content).hexdigest()
    (saved / WEIGHTS_FILE).unlink()
    for name, part in (("b.safetensors", content[:100]), ("a.safetensors", content[100:])):
        (saved / name).write_bytes(part)
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (saved / INDEX_FILE).write_text(json.dumps(index))
    assert [file.name for file in weight_files(saved)] == ["a.safetensors", "b.safetensors"]
    printed = subprocess.run(
        "sha256sum *.safetensors", shell=True, cwd=saved, capture_output=True, check=True
    ).stdout
    assert vae_digest(saved) == hashlib.sha256(printed).hexdigest()
    (saved / "a.safetensors").unlink()
    with pytest.raises(UserError, match=r"a\.safetensors"):
        vae_digest(saved)
