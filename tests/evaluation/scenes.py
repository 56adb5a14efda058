"""Runs of every kind of data, as small as they can be, with networks that compile in no time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.state.checkpoint import TrainedModel
from schemas.layout import Layout, layout_tensors
from schemas.manifest import Manifest, Normalization, SourceInfo, VaeInfo
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run
from tests.datasets import Row, build_dataset
from tests.evaluation.tiny import CLASSES, LATENT, SIDE, finish

RECORDS = 12


def make_dataset(
    directory: Path,
    layout: Layout,
    vae: VaeInfo | None,
    classes: Sequence[str] = CLASSES,
    normalization: Normalization | None = None,
) -> Manifest:
    """One shard of random records of a layout, labels in turn; the colours of images are smooth."""
    rng = np.random.default_rng(2)
    shape = (SIDE, SIDE, 3) if vae is None else (LATENT, LATENT, 4)

    def tensors() -> dict[str, np.ndarray]:
        if layout is Layout.IMAGE:
            ramp = np.linspace(0, 255, SIDE)[:, None, None] * rng.uniform(0.3, 1, 3)
            return {"image": np.broadcast_to(ramp, shape).astype(np.uint8)}
        names = layout_tensors(layout, shape)
        return {name: rng.normal(size=shape).astype(np.float16) for name in names}

    return build_dataset(
        directory,
        layout,
        shape,
        {"train": [[Row(f"{i:03d}", i % len(classes), tensors()) for i in range(RECORDS)]]},
        finish=finish,
        resolution=SIDE,
        crop="adm",
        classes=tuple(classes),
        source=SourceInfo(descriptor="none", split="train", digest="1" * 64),
        vae=vae,
        normalization=normalization,
        command="flowtrain preprocess none OUT",
    )


def make_run(directory: Path, manifest: Manifest, **tables: dict[str, Any]) -> Run:
    """A run on a dataset, not begun. `tables` are those of a recipe."""
    content = {"model": {"size": "debug"}, "train": {"steps": 9, "batch_size": 5}, **tables}
    return Run(
        recipe=make_recipe(content),
        dataset=DatasetRef.of(str(directory), manifest),
        latent_shape=manifest.shape,
        classes=manifest.classes,
        normalization=manifest.model_normalization(),
        vae=manifest.vae,
        parameters=1,
        versions={},
    )


def _predict(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    shift = (0.1 * label.astype(jnp.float32) + t)[:, None, None, None]
    return params * jnp.tanh(x + shift)


def trained_model(run: Run, step: int = 3, scale: float = 0.7) -> TrainedModel:
    """A network of one parameter that listens to all that it is given."""
    return TrainedModel(run, step, "ema", _predict, jnp.float32(scale))


def with_predict(trained: TrainedModel, predict: Any) -> TrainedModel:
    """The same with another network."""
    return replace(trained, predict=predict)
