"""The smallest real things that evaluation works on: a VAE, a run with a checkpoint, a dataset, an
extractor.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from evaluation.extractors.outputs import Outputs
from evaluation.protocols import Recipe
from flowtrain.model import count_parameters, make_network
from flowtrain.state.checkpoint import Checkpoints
from flowtrain.state.train_state import TrainState
from pipelines.dataset.finished import finish_dataset
from pipelines.encoders.kl import AutoencoderKL, VaeConfig
from pipelines.encoders.weights import load_vae, save_vae
from schemas.layout import Layout
from schemas.manifest import Manifest, SourceInfo, VaeInfo
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run, read_run, write_run
from schemas.storage.directory import Directory
from tests.datasets import Row, build_dataset

SIDE, LATENT = 8, 4  # pixels of an image, cells of a latent
CLASSES = ("zero", "one", "two")
STEP = 3
RECIPE = Recipe(name="tiny", extractor="tiny", metric="FD(tiny)", key="fd", resize="none")


@dataclass(frozen=True)
class TinyExtractor:
    """Five fixed projections of the mean colours of the four quarters. No weights to ship, nothing
    to compile.
    """

    name: str = "tiny"
    dim: int = 5
    digest: str = "0" * 64
    spatial_dim: int = 0
    class_names: tuple[str, ...] = (*CLASSES, "other")
    last_layer: str | None = ""

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        assert images.dtype == np.uint8, "an extractor sees pixels, never floats"
        n, side = len(images), images.shape[1] // 2
        pooled = images.reshape(n, 2, side, 2, side, 3).mean(axis=(2, 4)).reshape(n, 12) / 255
        weights = np.random.default_rng(0).normal(size=(12, self.dim + 4))
        features = pooled @ weights[:, : self.dim]
        logits = np.sin(99 * (pooled @ weights[:, self.dim :]))  # no class wins every time
        return Outputs(features.astype(np.float32), logits.astype(np.float32))


def random_like(abstract: Any, scale: float) -> Any:
    """A tree of normal arrays; drawn by NumPy, since initialising a network compiles for half a
    minute.
    """
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), abstract
    )


def make_vae(directory: Path) -> VaeInfo:
    """A random VAE of factor 2 with 4 latent channels."""
    config = VaeConfig(
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.1
    )
    graph, state = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, random_like(nnx.to_pure_dict(state), 0.3))
    save_vae(nnx.merge(graph, state), config, directory)
    loaded = load_vae(str(directory))
    return VaeInfo(
        id=str(directory),
        sha256=loaded.digest,
        config_sha256=config.digest(),
        factor=2,
        latent_channels=4,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
    )


def finish(directory: Path, manifest: Manifest) -> Manifest:
    """Everything that `preprocess` writes beside the shards."""
    return finish_dataset(Directory(str(directory)), manifest)


def make_dataset(
    directory: Path, vae: VaeInfo, records: int = 30, shards: int = 3, source: str = "none"
) -> Manifest:
    """A dataset of random moments, labels in turn."""
    rng = np.random.default_rng(1)
    shape = (LATENT, LATENT, 4)
    rows = [
        Row(
            f"{i:03d}.png",
            i % len(CLASSES),
            {name: rng.normal(size=shape).astype(np.float16) for name in ("mean", "logvar")},
        )
        for i in range(records)
    ]
    cuts = [number * records // shards for number in range(shards + 1)]
    return build_dataset(
        directory,
        Layout.MOMENTS,
        shape,
        {"train": [rows[start:stop] for start, stop in itertools.pairwise(cuts)]},
        finish=finish,
        resolution=SIDE,
        crop="adm",
        classes=CLASSES,
        source=SourceInfo(descriptor=source, split="train", digest="1" * 64),
        vae=vae,
        command="flowtrain preprocess none OUT",
    )


def make_run(workdir: Path, dataset: Path, manifest: Manifest) -> Run:
    """A work directory with one checkpoint of random weights, which move samples as trained ones
    would.
    """
    recipe = make_recipe({"model": {"size": "debug"}, "train": {"steps": STEP, "batch_size": 4}})
    shape = manifest.shape
    network = make_network(recipe.model, shape, len(CLASSES))
    params = random_like(network.abstract, 0.2)
    run = Run(
        recipe=recipe,
        dataset=DatasetRef.of(str(dataset), manifest),
        latent_shape=shape,
        classes=CLASSES,
        normalization=manifest.model_normalization(),
        vae=manifest.vae,
        parameters=count_parameters(params),
        versions={"jax": jax.__version__},
    )
    workdir.mkdir(parents=True)
    write_run(workdir, run)
    none = jnp.int32(0)
    with Checkpoints(workdir, recipe.train) as checkpoints:
        checkpoints.save(
            STEP, TrainState(jnp.int32(STEP), params, {"ema": params}, params, none, none), {}, {}
        )
    return run


def as_diffusion(workdir: Path, **sampler: object) -> Path:
    """Make a work directory that of a diffusion run, with the same weights."""
    recipe = {"model": {"size": "debug"}, "objective": {"kind": "diffusion"}, "sampler": sampler}
    recipe |= {"train": {"steps": STEP, "batch_size": 4}}
    write_run(workdir, read_run(workdir).model_copy(update={"recipe": make_recipe(recipe)}))
    return workdir
