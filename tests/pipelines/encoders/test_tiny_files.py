"""Which files a tiny autoencoder in two parts is, what each is good for, and what is said where one
is missing.
"""

import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.encoders.decode import decoding_vae
from pipelines.encoders.describe import describe_vae
from pipelines.encoders.encode import VaeEncoder
from pipelines.encoders.locate import find_vae, read_vae_config, vae_digest
from pipelines.encoders.weights import load_vae
from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.layout import Layout
from tests.pipelines.tiny_halves import random_halves, write_halves
from tests.pipelines.torch_writer import Stored, tensor, write_archive, write_state_dict


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("halves") / "tiny", random_halves())


@pytest.fixture
def halves(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def test_the_encoder_is_who_made_the_latents_and_the_decoder_is_told_beside_it(halves: Path):
    info = describe_vae(str(halves), dtype="float32")
    assert info is not None
    assert info.sha256 == vae_digest(halves) == sha256_file(halves / "taef2_encoder.safetensors")
    assert info.decoder_sha256 == sha256_file(halves / "taef2_decoder.safetensors")
    assert (info.network, info.layout, info.latent_channels) == (
        "AutoencoderTiny",
        Layout.LATENT,
        32,
    )
    (halves / "taef2_decoder.safetensors").unlink()
    alone = describe_vae(str(halves), dtype="float32")
    assert alone == info.model_copy(update={"decoder_sha256": None})


def test_an_encoder_alone_encodes_and_says_that_it_cannot_decode(halves: Path):
    both = load_vae(str(halves))
    (halves / "taef2_decoder.safetensors").unlink()
    alone = load_vae(str(halves))
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8))
    np.testing.assert_array_equal(alone.encode_pixels(pixels)[0], both.encode_pixels(pixels)[0])
    assert both.decodes
    assert not alone.decodes
    with pytest.raises(UserError, match="has no decoder; put its file beside the encoder's"):
        alone.decode(jnp.zeros((1, 2, 2, 32)))
    info = describe_vae(str(halves), dtype="float32")
    assert info is not None
    with pytest.raises(UserError, match="there is no decoder; put NAME_decoder"):
        decoding_vae(info)


def test_a_decoder_that_came_later_decodes_and_another_one_does_not(halves: Path):
    before = describe_vae(str(halves), dtype="float32")
    assert before is not None
    write_halves(halves, {"decoder": random_halves(seed=1)["decoder"]})
    with pytest.raises(UserError, match="is not the one that stood beside the encoder"):
        decoding_vae(before)
    came_later = before.model_copy(update={"decoder_sha256": None})
    assert decoding_vae(came_later).decodes


def test_the_authors_own_pth_files_are_read_without_running_them(halves: Path):
    before = load_vae(str(halves))
    for half, tensors in random_halves().items():
        (halves / f"taef2_{half}.safetensors").unlink()
        write_state_dict(halves / f"taef2_{half}.pth", tensors)
    after = load_vae(str(halves))
    assert after.parts == before.parts
    for mine, theirs in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    huge = {"14.weight": tensor(Stored("FloatStorage", "0", 1), 0, (10**6, 10**6), (0, 0))}
    write_archive(halves / "taef2_decoder.pth", huge, {"0": bytes(4)})
    with pytest.raises(UserError, match=r"lacks \d+ tensors that its network asks for"):
        load_vae(str(halves))
    (halves / "taef2_encoder.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="refused, nothing of it was run"):
        describe_vae(str(halves), dtype="float32")


def test_what_a_directory_lacks_is_said(halves: Path):
    shutil.copy(halves / "taef2_encoder.safetensors", halves / "taesd_encoder.safetensors")
    with pytest.raises(UserError, match="holds several tiny autoencoders"):
        read_vae_config(find_vae(str(halves)).directory)
    (halves / "taesd_encoder.safetensors").unlink()
    (halves / "taef2_encoder.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has taef2_decoder\.safetensors but no taef2_encoder\.safetensors"
    ):
        read_vae_config(halves)


def test_a_config_goes_before_the_names_of_files(halves: Path):
    (halves / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(
        UserError,
        match="is of a VQModel; supported are diffusers' AutoencoderKL and AutoencoderTiny",
    ):
        read_vae_config(halves)


def test_damaged_and_misfitting_files_are_named(halves: Path):
    encoder = halves / "taef2_encoder.safetensors"
    content = encoder.read_bytes()
    encoder.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"taef2_encoder\.safetensors: not a readable safetensors file"
    ):
        describe_vae(str(halves), dtype="float32")
    decoder = random_halves()["decoder"]
    del decoder["7.weight"]
    write_halves(halves, {"encoder": random_halves()["encoder"], "decoder": decoder})
    with pytest.raises(
        UserError, match=r"lacks 1 tensors that its network asks for, first decoder.layers.6.weight"
    ):
        load_vae(str(halves))
    write_halves(halves, {"decoder": random_halves(channels=16)["decoder"]})
    with pytest.raises(UserError, match=r"has decoder.layers.0.weight of shape \(64, 16, 3, 3\)"):
        load_vae(str(halves))


def test_a_worker_keeps_to_the_decoder_of_the_dataset(halves: Path):
    info = describe_vae(str(halves), dtype="float32")
    assert info is not None
    assert VaeEncoder(info).decodes
    begun_without = info.model_copy(update={"decoder_sha256": None})
    assert not VaeEncoder(begun_without).decodes, "the decoder came later"
    (halves / "taef2_decoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"the decoder of the VAE .+ is gone here, or another one"):
        VaeEncoder(info)
    assert not VaeEncoder(begun_without).decodes
