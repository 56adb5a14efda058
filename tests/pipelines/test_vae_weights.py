"""Finding, reading, checking and writing VAE checkpoints, and what the shipped one can do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from pipelines.sources.embedded import load_digits
from pipelines.vae import AutoencoderKL, VaeConfig
from pipelines.vae_weights import (
    EMBEDDED_DIRECTORY,
    WEIGHTS_FILE,
    load_vae,
    read_vae_config,
    resolve_vae,
    save_vae,
    vae_digest,
    vae_revision,
)
from schemas.errors import UserError

CONFIG = VaeConfig(block_out_channels=(8, 8), norm_num_groups=4)


@pytest.fixture(scope="module")
def model() -> AutoencoderKL:
    return AutoencoderKL(CONFIG, rngs=nnx.Rngs(3))


@pytest.fixture
def saved(model: AutoencoderKL, tmp_path: Path) -> Path:
    save_vae(model, CONFIG, tmp_path / "vae")
    return tmp_path / "vae"


def edit(directory: Path, **changes: np.ndarray | None) -> None:
    """Replace tensors of a saved VAE, drop those that are None."""
    tensors = {**load_file(directory / WEIGHTS_FILE), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, directory / WEIGHTS_FILE)


def test_saved_and_loaded_is_the_same_network(model: AutoencoderKL, saved: Path) -> None:
    vae = load_vae(str(saved))
    assert (vae.name, vae.config) == (str(saved), CONFIG)
    assert vae.digest == hashlib.sha256((saved / WEIGHTS_FILE).read_bytes()).hexdigest() == vae_digest(saved)
    before, after = jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(vae.params)
    assert len(before) == len(after) > 50
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tensor_names_and_shapes_are_diffusers(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    assert tensors["encoder.down_blocks.0.downsamplers.0.conv.weight"].shape == (8, 8, 3, 3)
    assert tensors["decoder.conv_in.weight"].shape == (8, 4, 3, 3)
    assert tensors["encoder.mid_block.attentions.0.to_out.0.weight"].shape == (8, 8)
    assert tensors["decoder.up_blocks.1.resnets.1.norm2.weight"].shape == (8,)
    assert {"quant_conv.bias", "post_quant_conv.weight"} <= tensors.keys()


@pytest.mark.parametrize("as_convolution", [False, True])
def test_old_attention_names_are_read(saved: Path, as_convolution: bool) -> None:
    new = jax.tree.leaves(load_vae(str(saved)).params)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    changes: dict[str, np.ndarray | None] = {}
    for name, value in load_file(saved / WEIGHTS_FILE).items():
        for to, old in old_names.items():
            if f".attentions.0.{to}." in name:
                changes[name] = None
                is_weight = name.endswith("weight")
                shaped = value[:, :, None, None] if as_convolution and is_weight else value
                changes[name.replace(f".{to}.", f".{old}.")] = shaped
    assert len(changes) == 32
    edit(saved, **changes)
    for a, b in zip(new, jax.tree.leaves(load_vae(str(saved)).params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_half_precision_files_are_widened(saved: Path) -> None:
    exact = load_vae(str(saved)).params
    edit(saved, **{name: value.astype(np.float16) for name, value in load_file(saved / WEIGHTS_FILE).items()})
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(load_vae(str(saved)).params), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_bfloat16_files_are_read(saved: Path) -> None:
    from safetensors.flax import save_file as save_jax

    narrow = {name: jnp.asarray(value, jnp.bfloat16) for name, value in load_file(saved / WEIGHTS_FILE).items()}
    save_jax(narrow, saved / WEIGHTS_FILE)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_vae(str(saved)).params)} == {jnp.dtype("float32")}


def fails(name: str | Path) -> str:
    """The one line that loading ends with."""
    with pytest.raises(UserError) as caught:
        load_vae(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unused_and_misshaped_tensors_are_named(saved: Path) -> None:
    original = (saved / WEIGHTS_FILE).read_bytes()
    edit(saved, **{"encoder.conv_in.bias": None})
    assert "lacks 1 tensors" in fails(saved)
    assert "encoder.conv_in.bias" in fails(saved)
    (saved / WEIGHTS_FILE).write_bytes(original)
    edit(saved, **{"encoder.extra.weight": np.zeros(3, np.float32)})
    assert "encoder.extra.weight" in fails(saved)
    (saved / WEIGHTS_FILE).write_bytes(original)
    edit(saved, **{"decoder.conv_out.weight": np.zeros((3, 4, 3, 3), np.float32)})
    assert "decoder.conv_out.weight of shape (3, 4, 3, 3)" in fails(saved)
    assert "(3, 8, 3, 3)" in fails(saved)


def test_wrong_directories_say_what_to_do(saved: Path, tmp_path: Path) -> None:
    assert "no such VAE directory" in fails(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(tmp_path / "empty")
    pipeline = tmp_path / "pipeline"
    shutil.copytree(saved, pipeline / "vae")
    assert str(pipeline / "vae") in fails(pipeline)
    assert "is a file" in fails(saved / WEIGHTS_FILE)


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / WEIGHTS_FILE).rename(saved / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin" in fails(saved)
    (saved / "diffusion_pytorch_model.bin").unlink()
    assert "no safetensors file" in fails(saved)


def test_several_weight_files_are_not_guessed_between(saved: Path) -> None:
    (saved / WEIGHTS_FILE).rename(saved / "a.safetensors")
    assert load_vae(str(saved)).digest == vae_digest(saved)
    shutil.copy(saved / "a.safetensors", saved / "b.safetensors")
    assert "several weight files" in fails(saved)


def test_broken_files_say_so(saved: Path) -> None:
    weights = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    assert "cannot read" in fails(saved)
    (saved / "config.json").write_text("{not json")
    assert "cannot read" in fails(saved)
    (saved / "config.json").write_text("[]")
    assert "JSON object" in fails(saved)


def test_unknown_compute_type() -> None:
    with pytest.raises(UserError, match="float32 or bfloat16"):
        load_vae("embedded", dtype="float8")


def test_hub_ids_come_from_the_cache_or_fail_in_one_line(saved: Path, tmp_path: Path) -> None:
    """Offline, in a process of its own: the hub's client reads its settings at import."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some-org--some-vae"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = """
from pipelines.vae_weights import resolve_vae, vae_revision
from schemas.errors import UserError
print(vae_revision(resolve_vae("some-org/some-vae")))
try:
    resolve_vae("some-org/other-vae")
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    revision, error = done.stdout.splitlines()
    assert revision == commit
    assert "some-org/other-vae" in error
    assert "embedded" in error


def test_the_embedded_vae_is_small_and_named() -> None:
    assert resolve_vae("embedded") == EMBEDDED_DIRECTORY
    config = read_vae_config(EMBEDDED_DIRECTORY)
    assert (config.factor, config.latent_channels) == (4, 4)
    assert (EMBEDDED_DIRECTORY / WEIGHTS_FILE).stat().st_size <= 3_000_000
    assert json.loads((EMBEDDED_DIRECTORY / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    assert "PSNR" in (EMBEDDED_DIRECTORY / "README.md").read_text()
    assert vae_revision(EMBEDDED_DIRECTORY) is None


def mean_psnr(images: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over uint8 images of each one's PSNR through the posterior mean, range 2, and the latents."""
    vae = load_vae("embedded")
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    levels, latents = [], []
    for start in range(0, len(x), 250):
        part = x[start : start + 250]
        mean, _ = vae.encode(part)
        error = jnp.square(jnp.clip(vae.decode(mean), -1, 1) - part).mean(axis=(1, 2, 3))
        levels.append(10 * jnp.log10(4 / error))
        latents.append(np.asarray(mean))
    return float(jnp.concatenate(levels).mean()), np.concatenate(latents)


def test_the_embedded_vae_on_held_out_digits() -> None:
    images, _ = load_digits("test")
    psnr, latents = mean_psnr(images)
    assert psnr >= 30
    scaled = latents * load_vae("embedded").config.scaling_factor
    assert 0.5 < scaled.std() < 1.5


def test_the_embedded_vae_on_held_out_colour_images(shared_data: Path) -> None:
    import io
    import tarfile

    from PIL import Image

    archive = shared_data / "cifar10_train.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} among the sample images")
    with tarfile.open(archive) as tar:
        by_class: dict[str, list[tarfile.TarInfo]] = {}
        for member in tar:
            by_class.setdefault(member.name.split("/")[0], []).append(member)
        # every tenth of a class, by name, was held out; every tenth of those is enough here
        chosen = [m for members in by_class.values() for m in sorted(members, key=lambda m: m.name)[9::100]]
        files = [tar.extractfile(member) for member in chosen]
        images = [np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")) for file in files if file is not None]
    assert len(images) >= 250
    assert mean_psnr(np.stack(images)[:500])[0] >= 22
