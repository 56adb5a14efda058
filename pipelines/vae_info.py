"""A VAE as settings and manifests state it: found, digested, its precision chosen. The weights are not loaded."""

from pipelines.settings import PIXELS
from pipelines.vae_weights import EMBEDDED, read_vae_config, resolve_vae, vae_digest, vae_revision, weights_file
from schemas.errors import UserError
from schemas.manifest import VaeInfo


def describe_vae(name: str, revision: str | None = None, dtype: str | None = None) -> VaeInfo | None:
    """Resolve and digest a VAE; None for `none`.

    Args:
        name: as for `pipelines.vae_weights.resolve_vae`.
        revision: branch, tag or commit of a VAE on the hub.
        dtype: compute type, "float32" or "bfloat16"; None for the one that suits this machine, which JAX is imported
            to see. With a type given this imports no JAX.

    Raises:
        UserError: no such VAE, or not one that is supported.
    """
    if name == PIXELS:
        return None
    from pathlib import Path

    from safetensors import SafetensorError, safe_open

    path = resolve_vae(name, revision)
    config = read_vae_config(path)
    try:
        with safe_open(weights_file(path), framework="numpy"):
            pass  # the header is whole and fits the length of the file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_file(path)}: not a readable safetensors file ({error}); fetch it again") from error
    local = Path(name).expanduser()
    return VaeInfo.model_validate(
        {
            "id": str(local.absolute()) if name != EMBEDDED and local.is_dir() else name,
            "revision": vae_revision(path),
            "sha256": vae_digest(path),
            "factor": config.factor,
            "latent_channels": config.latent_channels,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor,
            "dtype": dtype or default_dtype(),
        }
    )


def default_dtype() -> str:
    """bfloat16 where there is an accelerator, float32 on a CPU, where the narrower type is slower. Imports JAX."""
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
