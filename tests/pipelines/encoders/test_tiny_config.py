"""What network a tiny autoencoder's config, or the shapes of its encoder, stand for."""

import json
from typing import Any

import pytest

from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.tiny_config import TinyConfig
from schemas.errors import UserError
from tests.pipelines.tiny_halves import random_halves


def shapes(channels: int, pool: bool) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in random_halves(channels, pool)["encoder"].items()}


def test_a_config_comes_back_from_what_it_writes():
    config = TinyConfig(
        latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, act_fn="silu", pool=True
    )
    assert TinyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_diffusers_leaves_out_or_adds_does_not_matter():
    values = {
        "_class_name": "AutoencoderTiny",
        "latent_magnitude": 3,
        "force_upcast": False,
        "block_out_channels": [64],
    }
    assert TinyConfig.from_dict(values) == TinyConfig()
    assert TinyConfig().factor == 8


def test_digests_tell_configs_and_classes_apart():
    digests = {TinyConfig().digest(), TinyConfig(pool=True).digest(), VaeConfig().digest()}
    assert len(digests) == 3


@pytest.mark.parametrize(("channels", "pool"), [(4, False), (16, False), (32, True)])
def test_the_shapes_of_an_encoder_tell_its_variant(channels: int, pool: bool):
    config = TinyConfig.from_encoder(shapes(channels, pool), "here")
    assert (config.latent_channels, config.pool, config.factor) == (channels, pool, 8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            shapes(8, False),
            "here has 8 latent channels without pooling blocks, which is no known variant; known "
            "are 4",
        ),
        (shapes(4, True), "here has 4 latent channels with pooling blocks"),
        ({"conv_in.weight": (64, 3, 3, 3)}, "its layers are not numbered"),
        ({"0.weight": (64, 3, 3, 3), "extra": (1,)}, "its layers are not numbered"),
        ({}, "its layers are not numbered"),
        ({"0.weight": ()}, "its 0.weight is no convolution"),
    ],
    ids=["channels", "pool", "names", "one name", "empty", "scalar"],
)
def test_other_files_are_refused(tensors: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        TinyConfig.from_encoder(tensors, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_fn": "bilinear"}, "upsample_fn 'bilinear'; only 'nearest'"),
        ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor 3; only 2"),
        ({"act_fn": "tanh"}, "act_fn 'tanh'; supported are"),
        ({"latent_channels": 0}, "latent_channels 0; it must be 1 to 4096"),
        ({"latent_channels": 10**30}, "it must be 1 to 4096"),
        ({"in_channels": 1}, "in_channels 1; only 3 is supported"),
        ({"out_channels": 4}, "out_channels 4; only 3 is supported"),
        ({"scaling_factor": 0}, "scaling_factor 0.0; it must be a number above 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan; it must be a number above 0"),
        ({"shift_factor": float("inf")}, "shift_factor inf; it must be a number"),
        ({"latent_channels": "4"}, "latent_channels '4', which is of the wrong type"),
        ({"pool": 1}, "pool 1, which is of the wrong type"),
        ({"encoder_block_out_channels": [64, 64.5]}, "of the wrong type"),
        ({"encoder_block_out_channels": [32, 64, 64, 64]}, "all must be the same"),
        ({"num_decoder_blocks": [3, 1]}, "each needs one entry a stage"),
    ],
)
def test_configs_that_are_not_supported(change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as error:
        TinyConfig.from_dict({"_class_name": "AutoencoderTiny", **change})
    assert "\n" not in str(error.value)
