"""Posterior sampling and normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.records.latents import model_latents

SHAPE = (2, 2, 2)
ONES, ZEROS = (1.0, 1.0), (0.0, 0.0)


def _batch(epochs: int) -> dict[str, Any]:
    """One record, seen in many epochs; channel deviations 0.5 and 2."""
    mean = jnp.broadcast_to(jnp.arange(8, dtype=jnp.float16).reshape(1, *SHAPE), (epochs, *SHAPE))
    logvar = jnp.broadcast_to(
        2 * jnp.log(jnp.array([0.5, 2.0])).reshape(1, 1, 1, 2), (epochs, *SHAPE)
    )
    return {
        "mean": mean,
        "logvar": logvar.astype(jnp.float16),
        "epoch": jnp.arange(epochs, dtype=jnp.int32),
        "index": jnp.full(epochs, 3, jnp.int32),
    }


def test_posterior_samples_have_the_moments_and_differ_between_epochs():
    batch = _batch(4000)
    latents = np.asarray(model_latents(jax.random.key(0), batch, "moments", ZEROS, ONES))
    assert latents.dtype == np.float32
    assert len(np.unique(latents[:, 0, 0, 0])) > 3900
    np.testing.assert_allclose(latents.mean(0), batch["mean"][0], atol=0.15)
    np.testing.assert_allclose(latents.std(0), np.broadcast_to([0.5, 2.0], SHAPE), rtol=0.05)


def test_a_record_gets_the_same_sample_in_any_batch():
    batch, key = _batch(6), jax.random.key(0)
    whole = model_latents(key, batch, "moments", ZEROS, ONES)
    part = model_latents(
        key, {name: value[4:2:-1] for name, value in batch.items()}, "moments", ZEROS, ONES
    )
    np.testing.assert_array_equal(part, whole[4:2:-1])


def test_normalisation_is_minus_offset_times_scale():
    stored = np.arange(8, dtype=np.float16).reshape(1, *SHAPE)
    for layout in ("latent", "image"):
        latents = model_latents(
            jax.random.key(0), {layout: stored}, layout, (1.0, -1.0), (2.0, 10.0)
        )
        np.testing.assert_array_equal(latents[0, 0, 0], [(0 - 1) * 2, (1 + 1) * 10])
