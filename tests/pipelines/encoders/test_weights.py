"""Reading, checking and writing the weights of a VAE, and what the shipped one can do."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from pipelines.encoders.kl import AutoencoderKL
from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.locate import EMBEDDED_DIRECTORY, read_vae_config, vae_digest
from pipelines.encoders.weight_files import INDEX_FILE, WEIGHTS_FILE
from pipelines.encoders.weights import load_vae, save_vae
from pipelines.sources.embedded import load_digits
from schemas.errors import UserError
from schemas.pixels import from_uint8

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
    save_file(
        {name: value for name, value in tensors.items() if value is not None},
        directory / WEIGHTS_FILE,
    )


def test_saved_and_loaded_is_the_same_network(model: AutoencoderKL, saved: Path) -> None:
    vae = load_vae(str(saved))
    assert (vae.name, vae.config) == (str(saved), CONFIG)
    assert (
        vae.digest
        == hashlib.sha256((saved / WEIGHTS_FILE).read_bytes()).hexdigest()
        == vae_digest(saved)
    )
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
    edit(
        saved,
        **{
            name: value.astype(np.float16)
            for name, value in load_file(saved / WEIGHTS_FILE).items()
        },
    )
    for a, b in zip(
        jax.tree.leaves(exact), jax.tree.leaves(load_vae(str(saved)).params), strict=True
    ):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_bfloat16_files_are_read(saved: Path) -> None:
    from safetensors.flax import save_file as save_jax

    narrow = {
        name: jnp.asarray(value, jnp.bfloat16)
        for name, value in load_file(saved / WEIGHTS_FILE).items()
    }
    save_jax(narrow, saved / WEIGHTS_FILE)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_vae(str(saved)).params)} == {
        jnp.dtype("float32")
    }


def test_pixels_on_the_device_are_those_of_the_host(saved: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8)[np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))]
    vae = load_vae(str(saved))
    for a, b in zip(
        vae.encode_pixels(jnp.asarray(pixels)),
        vae.encode(jnp.asarray(from_uint8(pixels))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_weights_in_several_files_are_put_together(saved: Path) -> None:
    whole = jax.tree.leaves(load_vae(str(saved)).params)
    tensors = load_file(saved / WEIGHTS_FILE)
    (saved / WEIGHTS_FILE).unlink()
    weight_map = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for part in set(weight_map.values()):
        save_file(
            {name: value for name, value in tensors.items() if weight_map[name] == part},
            saved / part,
        )
    (saved / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    for a, b in zip(whole, jax.tree.leaves(load_vae(str(saved)).params), strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_broken_files_say_so(saved: Path) -> None:
    weights = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    assert "cannot read" in fails(saved)


def test_unknown_compute_type() -> None:
    with pytest.raises(UserError, match="float32 or bfloat16"):
        load_vae("embedded", dtype="float8")


def test_the_embedded_vae_is_small_and_named() -> None:
    config = read_vae_config(EMBEDDED_DIRECTORY)
    assert (config.factor, config.latent_channels) == (4, 4)
    assert (EMBEDDED_DIRECTORY / WEIGHTS_FILE).stat().st_size <= 3_000_000
    assert (
        json.loads((EMBEDDED_DIRECTORY / "config.json").read_text())["_class_name"]
        == "AutoencoderKL"
    )
    assert "PSNR" in (EMBEDDED_DIRECTORY / "README.md").read_text()


def mean_psnr(images: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over uint8 images of each one's PSNR through the posterior mean, range 2, and the
    latents.
    """
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
        chosen = [
            m
            for members in by_class.values()
            for m in sorted(members, key=lambda m: m.name)[9::100]
        ]
        files = [tar.extractfile(member) for member in chosen]
        images = [
            np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
            for file in files
            if file is not None
        ]
    assert len(images) >= 250
    assert mean_psnr(np.stack(images)[:500])[0] >= 22
