"""Latents to checkpoints in JAX: DiT, flow-matching objective, samplers, Grain loader."""
