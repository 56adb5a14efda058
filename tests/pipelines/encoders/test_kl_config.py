import json

import pytest

from pipelines.encoders.kl import ACTIVATIONS as FUNCTIONS
from pipelines.encoders.kl_config import ACTIVATIONS, VaeConfig
from schemas.errors import UserError

BLOCKS = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
SMALL = {"block_out_channels": [8, 16], "norm_num_groups": 4, **BLOCKS}


def test_config_of_the_default_vae_as_published() -> None:
    """It is of 2022: what came later is left out."""
    config = VaeConfig.from_dict(
        {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.4.2",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 256,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        }
    )
    assert (config.factor, config.latent_channels, config.scaling_factor, config.shift_factor) == (
        8,
        4,
        0.18215,
        0.0,
    )
    assert (config.use_quant_conv, config.use_post_quant_conv, config.mid_block_add_attention) == (
        True,
        True,
        True,
    )


def test_activations_that_are_accepted_are_there() -> None:
    assert sorted(FUNCTIONS) == sorted(ACTIVATIONS)


def test_config_of_stable_diffusion_3_as_published() -> None:
    config = VaeConfig.from_dict(
        {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.29.0",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": 16,
            "latents_mean": None,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        }
    )
    assert (config.factor, config.latent_channels, config.scaling_factor, config.shift_factor) == (
        8,
        16,
        1.5305,
        0.0609,
    )
    assert (config.use_quant_conv, config.use_post_quant_conv, config.mid_block_add_attention) == (
        False,
        False,
        True,
    )
    assert VaeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_null_shift_is_no_shift_and_old_files_get_diffusers_defaults() -> None:
    config = VaeConfig.from_dict({**SMALL, "shift_factor": None})
    assert (config.shift_factor, config.scaling_factor, config.use_quant_conv) == (
        0.0,
        0.18215,
        True,
    )


def test_the_digest_is_of_what_is_computed_and_not_of_how_it_is_said() -> None:
    digest = VaeConfig.from_dict({**SMALL, "scaling_factor": 1.0}).digest()
    same = dict(reversed(list(SMALL.items()))) | {
        "scaling_factor": 1,
        "act_fn": "silu",
        "sample_size": 512,
    }
    assert VaeConfig.from_dict(same).digest() == digest
    changes = (
        {"act_fn": "relu"},
        {"norm_num_groups": 2},
        {"scaling_factor": 1.5},
        {"use_quant_conv": False},
    )
    others = {
        VaeConfig.from_dict({**SMALL, "scaling_factor": 1.0, **change}).digest()
        for change in changes
    }
    assert len(others | {digest}) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"_class_name": None, "block_out_channels": None}, "no _class_name"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "AttnDownEncoderBlock2D",
        ),
        ({"up_block_types": ["UpDecoderBlock2D", "OddBlock"]}, "OddBlock"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"act_fn": "sine"}, "sine"),
        ({"norm_num_groups": 5}, "norm_num_groups 5"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"latent_channels": "four"}, "latent_channels"),
        ({"block_out_channels": 8}, "block_out_channels"),
        ({"scaling_factor": "big"}, "scaling_factor"),
        ({"scaling_factor": 0}, "scaling_factor 0; it must be a number above 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan"),
        ({"shift_factor": 10**400}, "shift_factor inf"),
        ({"latent_channels": 10**12}, "latent_channels 1000000000000"),
        ({"block_out_channels": [], "_class_name": "AutoencoderKL"}, "block_out_channels"),
        ({"block_out_channels": [8] * 64}, "for 64 block_out_channels"),
    ],
)
def test_unsupported_configs_are_named_in_one_line(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        VaeConfig.from_dict({**SMALL, **change})
    assert "\n" not in str(caught.value)
