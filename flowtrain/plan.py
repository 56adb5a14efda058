"""A run that has been checked and not begun: recipe, dataset, and whether they fit each other."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowtrain.model import Constrain, Network, count_parameters, forward_macs, make_network
from flowtrain.records.order import Selection
from flowtrain.records.reader import LatentReader, Records
from flowtrain.state.ema import average_names
from flowtrain.step import Setup
from schemas.config import Flip, Recipe
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Manifest, Normalization
from schemas.run import DatasetRef, Run
from schemas.versions import installed_version

_PACKAGES = ("flowtrain", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
TRAINING_COST = 3  # forward passes that a training step costs: one forward, two's worth backward


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not begun."""

    run: Run
    reader: Records
    network: Network
    # what a batch goes through; run.normalization is the same from the VAE's own scale
    from_stored: Normalization
    selection: Selection

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def flops_per_image(self) -> float:
        """Of a training step, twice the multiply-accumulates."""
        return 2.0 * TRAINING_COST * forward_macs(self.recipe.model, self.run.latent_shape)

    @property
    def advice(self) -> str | None:
        """A line for latents that reach the model in whatever scale their encoder left them.

        A VAE without a scaling factor of its own (TAESD, TAEF1, TAEF2) has 1.0 and no shift, so
        that `train.normalization = "vae"` changes nothing.
        """
        manifest = self.reader.manifest
        if manifest.vae is None or manifest.generated or self.recipe.train.normalization != "vae":
            return None
        if self.from_stored != Normalization.identity(manifest.shape[2]):
            return None
        deviations = manifest.channels.std
        return (
            "the encoder has no scaling factor, and the channels of its latents have deviations "
            f"from {min(deviations):.2f} to {max(deviations):.2f}; "
            "--set train.normalization=channel brings each to mean 0 and deviation 1"
        )

    @property
    def mirrored(self) -> str:
        """Where mirror images come from."""
        if self.recipe.train.flip == "never":
            return "no"
        if self.reader.manifest.flips:
            return "stored encodings"
        return "pixels, as they are read" if self.recipe.train.flip == "always" else "no"

    def setup(self, constrain: Constrain | None = None) -> Setup:
        """What a step is made of; `constrain` says where activations live."""
        run, network = self.run, self.network
        if constrain is not None:
            network = make_network(self.recipe.model, run.latent_shape, len(run.classes), constrain)
        return Setup(
            recipe=self.recipe,
            network=network,
            latent_shape=run.latent_shape,
            null_class=len(run.classes),
            layout=self.reader.manifest.layout,
            offset=self.from_stored.offset,
            scale=self.from_stored.scale,
        )

    def summary(self) -> dict[str, Any]:
        """What `--dry-run` prints. FLOPs are twice the multiply-accumulates; a training step costs
        three forwards.
        """
        recipe, parameters = self.recipe, self.run.parameters
        trees = 3 + len(average_names(recipe.train))  # parameters, Adam's two moments, averages
        return {
            "dataset": self.run.dataset.path,
            "records": self.run.dataset.records,
            "trained_on": len(self.selection),
            "classes": len(self.run.classes),
            "mirrored": self.mirrored,
            "latent": "x".join(map(str, self.run.latent_shape)),
            "steps": recipe.train.steps,
            "batch_size": recipe.train.batch_size,
            "epochs": round(recipe.train.steps * recipe.train.batch_size / len(self.selection), 2),
            "parameters": parameters,
            "forward_gflop_per_image": round(
                2e-9 * forward_macs(recipe.model, self.run.latent_shape), 4
            ),
            "checkpoint_bytes": 4 * trees * parameters,
        }


def make_plan(data: Path, recipe: Recipe) -> Plan:
    """Open the dataset and check that the recipe fits it.

    Raises:
        UserError: the dataset is not whole, or its latents, classes or size do not fit the model or
            the batch.
    """
    return plan_for(LatentReader(data), str(data.resolve()), recipe)


def plan_for(reader: Records, where: str, recipe: Recipe) -> Plan:
    """As `make_plan` for open records; `where` is the dataset's path or URL in the run.

    Raises:
        UserError: as `make_plan`, but for the dataset itself.
    """
    manifest = reader.manifest
    _check_shapes(manifest, recipe)
    _check_channels(manifest, recipe)
    _check_mirrors(manifest, recipe)
    _check_classes(manifest, recipe)
    if recipe.train.flip == "always" and manifest.flips:
        recipe = _with_flip(recipe, "auto")  # the same batches, and so the same run
    selection = _select(where, len(reader), recipe)
    network = make_network(recipe.model, manifest.shape, len(manifest.classes))
    from_stored = _FROM_STORED[recipe.train.normalization](manifest)
    run = Run(
        recipe=recipe,
        dataset=DatasetRef.of(where, manifest),
        latent_shape=manifest.shape,
        classes=manifest.classes,
        empty_classes=manifest.empty_classes,
        normalization=_from_raw(manifest, from_stored),
        vae=manifest.vae,
        parameters=count_parameters(network.abstract),
        versions={"python": platform.python_version()}
        | {name: installed_version(name) for name in _PACKAGES},
    )
    return Plan(run, reader, network, from_stored, selection)


def _vae_scale(manifest: Manifest) -> Normalization:
    """Samples of a model are stored in a model's scale already."""
    return (
        Normalization.identity(manifest.shape[2])
        if manifest.generated
        else manifest.model_normalization()
    )


# From what is stored to what the model sees, by `train.normalization`.
_FROM_STORED: dict[str, Callable[[Manifest], Normalization]] = {
    "vae": _vae_scale,
    "channel": Manifest.channel_normalization,
}


def _from_raw(manifest: Manifest, from_stored: Normalization) -> Normalization:
    """From the VAE's scale to what the model sees: decoding inverts it."""
    return (
        from_stored if manifest.normalization is None else manifest.normalization.then(from_stored)
    )


def _select(where: str, records: int, recipe: Recipe) -> Selection:
    train = recipe.train
    selection = Selection.choose(records, holdout=train.holdout, overfit=train.overfit)
    if train.batch_size > len(selection) and train.overfit is None:
        raise UserError(
            f"{where}: train.batch_size {train.batch_size} is larger than the dataset "
            f"({len(selection)} records); "
            f"lower it with --set train.batch_size={len(selection)}"
        )
    return selection


def _check_shapes(manifest: Manifest, recipe: Recipe) -> None:
    height, width, _ = manifest.shape
    made_for = recipe.model.latent
    if made_for is not None and made_for != manifest.shape:
        raise UserError(
            f"the recipe is for latents of {_by(made_for)} and the dataset holds "
            f"{_by(manifest.shape)}; encode it at another resolution or with another VAE, or train "
            f"with --set model.latent={list(manifest.shape)}"
        )
    patch = recipe.model.patch
    if height % patch or width % patch:
        factor = manifest.vae.factor if manifest.vae else 1
        raise UserError(
            f"resolution {manifest.resolution} is not divisible by VAE factor {factor} x patch "
            f"{patch}: the latents are {height}x{width}; choose model.patch to divide them, or "
            f"encode at a multiple of {factor * patch}"
        )


def _check_channels(manifest: Manifest, recipe: Recipe) -> None:
    guided, channels = recipe.sampler.cfg_channels, manifest.shape[2]
    if guided is not None and guided > channels:
        raise UserError(
            f"sampler.cfg_channels {guided}: the latents have {channels} channels; lower it"
        )


def _with_flip(recipe: Recipe, flip: Flip) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"flip": flip})})


def _check_mirrors(manifest: Manifest, recipe: Recipe) -> None:
    has_mirrors = manifest.flips or manifest.layout is Layout.IMAGE
    if recipe.train.flip == "always" and not has_mirrors:
        raise UserError(
            "train.flip=true: the dataset has no mirrored encodings, and latents have no mirror "
            "image of their own; encode with `flowtrain preprocess --flips`, or set "
            "train.flip=auto"
        )


def _check_classes(manifest: Manifest, recipe: Recipe) -> None:
    classes = len(manifest.classes)
    if recipe.model.classes not in (None, classes):
        raise UserError(
            f"the recipe is for {recipe.model.classes} classes and the dataset has {classes}; "
            f"if that is meant, train with --set model.classes={classes}"
        )


def check_validation(plan: Plan, manifest: Manifest, where: Path) -> None:
    """Whether a dataset can be validated on.

    Raises:
        UserError: its latents, their VAE or their scale, or its classes are not those of training.
    """
    run, own = plan.run, plan.reader.manifest
    differences = [
        f"{name} is {theirs}, not {mine}"
        for name, mine, theirs in (
            ("the layout", str(own.layout), str(manifest.layout)),
            ("the latent", _by(run.latent_shape), _by(manifest.shape)),
            ("the number of classes", len(run.classes), len(manifest.classes)),
            ("the VAE", _vae(run.vae), _vae(manifest.vae)),
        )
        if mine != theirs
    ]
    if not differences and own.normalization != manifest.normalization:
        differences = ["its latents are in another scale"]
    if not differences and run.classes != manifest.classes:
        differences = ["its classes have other names or another order"]
    if differences:
        raise UserError(
            f"{where}: cannot validate on it: {differences[0]}; encode it as the training data was "
            "(`flowtrain data diff` shows how they differ)"
        )


def _vae(vae: Any) -> str:
    return "none" if vae is None else vae.sha256[:12]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
