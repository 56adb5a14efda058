"""The work of a VAE, as XLA counts it without compiling or reading weights."""

from collections.abc import Sequence
from typing import Any

from pipelines.encoders.locate import find_vae, read_vae_config


def encoder_flops(vae: str, resolution: int, revision: str | None = None) -> int | None:
    """FLOPs (a multiply-add is two) to encode one RGB image; None where XLA counts none.

    Raises:
        UserError: no such VAE.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pipelines.encoders.weights import abstract_network

    config = read_vae_config(find_vae(vae, revision).directory)
    graphdef, state = abstract_network(config)
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    lowered = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x)).lower(state, image)
    return _flops(lowered.cost_analysis())


def _flops(analysis: Any) -> int | None:
    """The count in JAX's cost analysis: a dictionary, or one a computation, or nothing."""
    parts = analysis if isinstance(analysis, Sequence) else [analysis or {}]
    counted = [part["flops"] for part in parts if "flops" in part]
    return int(sum(counted)) if counted else None
