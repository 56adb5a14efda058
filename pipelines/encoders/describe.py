"""A VAE as settings and manifests state it; its weights are digested and not loaded."""

from pipelines.encoders.locate import (
    CONFIGS,
    decoder_digest,
    find_vae,
    read_vae_config,
    tensor_shapes,
    vae_digest,
    weight_files,
)
from schemas.manifest import PIXELS, VaeInfo


def describe_vae(
    name: str, revision: str | None = None, dtype: str | None = None
) -> VaeInfo | None:
    """Find and digest a VAE; None for `none`.

    Args:
        name: as for `pipelines.encoders.locate.find_vae`, or `none`.
        revision: branch, tag or commit of a VAE on the hub; the result names the commit.
        dtype: compute type, "float32" or "bfloat16"; None for the one that suits this machine,
            which JAX is imported to see. With a type given this imports no JAX.

    Raises:
        UserError: no such VAE, or not one that is supported.
    """
    if name == PIXELS:
        return None
    found = find_vae(name, revision)
    config = read_vae_config(found.directory)
    for file in weight_files(found.directory):
        tensor_shapes(file)  # it is whole
    networks = {config_class: name for name, config_class in CONFIGS.items()}
    return VaeInfo.model_validate(
        {
            "id": found.name,
            "revision": found.revision,
            "sha256": vae_digest(found.directory),
            "config_sha256": config.digest(),
            "factor": config.factor,
            "latent_channels": config.latent_channels,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor,
            "dtype": dtype or default_dtype(),
            "network": networks[type(config)],
            "decoder_sha256": decoder_digest(found.directory),
        }
    )


def default_dtype() -> str:
    """bfloat16 on an accelerator; float32 on a CPU, where bfloat16 gains nothing. Imports JAX."""
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
