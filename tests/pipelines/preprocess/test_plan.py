from pathlib import Path

import pytest

from pipelines.encoders.describe import describe_vae
from pipelines.encoders.weights import vae_digest
from tests.pipelines.running import plan


def test_shards_are_chosen_when_left_out(photos: Path, tmp_path: Path) -> None:
    assert plan(photos, tmp_path / "a", shards=None).settings.shards == 1
    assert plan("embedded:digits", tmp_path / "b", shards=None, resolution=32).settings.shards == 4


def test_vae_is_named_so_that_it_is_found_again(
    tiny_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_vae.parent)
    info = describe_vae("tiny")
    assert info is not None
    assert info.id == str(tiny_vae)
    assert info.sha256 == vae_digest(tiny_vae)
    assert (info.factor, info.latent_channels) == (2, 4)
    assert describe_vae("none") is None
    embedded = describe_vae("embedded")
    assert embedded is not None
    assert (embedded.id, embedded.factor, embedded.latent_channels) == ("embedded", 4, 4)
