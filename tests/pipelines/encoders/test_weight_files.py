"""Which files hold a VAE's weights, from their names alone, and which names are refused."""

import json
from pathlib import Path

import pytest

from pipelines.encoders.weight_files import (
    INDEX_FILE,
    WEIGHTS_FILE,
    choose_weights,
    indexed_files,
    read_object,
)
from schemas.errors import UserError


def test_diffusers_names_go_first() -> None:
    names = ["a.safetensors", "b.safetensors", "c.bin", INDEX_FILE]
    assert choose_weights(names, "x") == INDEX_FILE
    assert choose_weights([*names, WEIGHTS_FILE], "x") == WEIGHTS_FILE


def test_an_only_file_may_have_any_name() -> None:
    assert choose_weights(["config.json", "vae.safetensors", "vae.ckpt"], "x") == "vae.safetensors"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["b.safetensors", "a.safetensors"],
            "x has several weight files (a.safetensors, b.safetensors) and no",
        ),
        (
            ["b.pt", "a.ckpt", "readme.md"],
            "x has only pickled weights (a.ckpt), which can run code",
        ),
        (["config.json"], "no safetensors file in the VAE x"),
        ([], "no safetensors file in the VAE x"),
    ],
)
def test_what_is_not_guessed_at(names: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_weights(names, "x")
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_each_file_of_an_index_once_in_order(tmp_path: Path) -> None:
    index = tmp_path / INDEX_FILE
    names = {"x": "b-2.safetensors", "y": "a_1.safetensors", "z": "b-2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert indexed_files(index) == ("a_1.safetensors", "b-2.safetensors")


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        [],
        {"x": "../elsewhere.safetensors"},
        {"x": "/etc/a.safetensors"},
        {"x": "a.safetensors", "y": "a.bin"},
        {"x": "a.safetensors\n"},
        {"x": 1},
    ],
)
def test_indices_that_lead_nowhere_are_refused(tmp_path: Path, weight_map: object) -> None:
    index = tmp_path / INDEX_FILE
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="no index of safetensors files") as caught:
        indexed_files(index)
    assert str(caught.value).startswith(f"{index} ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{not json", "cannot read"),
        (b"\xff\xfe", "cannot read"),
        (b"[" * 100_000, "cannot read"),
        (b"", "cannot read"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
    ],
)
def test_broken_files_say_so(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read_object(file)
    assert str(file) in str(caught.value)
    with pytest.raises(UserError, match="cannot read"):
        read_object(tmp_path / "nothing.json")
