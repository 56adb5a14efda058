"""The work of a VAE, counted by XLA on the untransformed program: nothing is compiled, no weights are read."""

from pipelines.vae_weights import read_vae_config, resolve_vae


def encoder_flops(vae: str, resolution: int) -> int:
    """Floating-point operations (a multiply-add is two) to encode one square RGB image.

    Raises:
        UserError: no such VAE.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pipelines.vae import AutoencoderKL

    config = read_vae_config(resolve_vae(vae))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    lowered = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x)).lower(state, image)
    analysis = lowered.cost_analysis()
    assert isinstance(analysis, dict)
    return int(analysis["flops"])
