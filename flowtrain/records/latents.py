"""Stored tensors to model input, on the device: draw from the posterior, then normalise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowtrain.records.counter import Purpose, record_keys
from flowtrain.shapes import Latents, RandomKey


def _from_moments(key: RandomKey, batch: dict[str, Any]) -> Latents:
    """A sample of the VAE's posterior, mean + exp(logvar / 2) * eps, new in every epoch."""
    mean = batch["mean"].astype(jnp.float32)
    deviation = jnp.exp(0.5 * batch["logvar"].astype(jnp.float32))
    keys = record_keys(key, Purpose.POSTERIOR, batch["epoch"], batch["index"])
    return mean + deviation * jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)


def _from_tensor(name: str) -> Callable[[RandomKey, dict[str, Any]], Latents]:
    return lambda key, batch: batch[name].astype(jnp.float32)


# By `Manifest.layout`. Images arrive from the loader as float32 in [-1, 1].
RAW: dict[str, Callable[[RandomKey, dict[str, Any]], Latents]] = {
    "moments": _from_moments,
    "latent": _from_tensor("latent"),
    "image": _from_tensor("image"),
}


def model_latents(
    key: RandomKey,
    batch: dict[str, Any],
    layout: str,
    offset: tuple[float, ...],
    scale: tuple[float, ...],
) -> Latents:
    """(n, h, w, c) float32 in the model's scale: (raw - offset) * scale, channel by channel."""
    raw = RAW[layout](key, batch)
    shape = (1, 1, 1, len(offset))
    return (raw - jnp.asarray(offset, jnp.float32).reshape(shape)) * jnp.asarray(
        scale, jnp.float32
    ).reshape(shape)
