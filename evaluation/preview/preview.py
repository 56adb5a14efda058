"""What a training run draws of itself: samples, one-step reconstructions, perhaps a distance.

The `train` command composes this into the training loop as a hook; neither imports the other. Every
preview starts from the same noise, so that its pictures can be compared over training, and sample i
is the one that `flowtrain sample --seed 0` draws.

What the user can mend is told by `make_preview`, before training begins. After that nothing here
ends a run: what cannot be drawn or written is told, and left out.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from evaluation.extractors import cache
from evaluation.features.measure import MeasureOptions, protocol_of
from evaluation.metrics import statistics_distance
from evaluation.preview.examples import Examples, read_examples
from evaluation.preview.sheet import Panel, sheet
from evaluation.progress import MakeBar, Notify
from evaluation.protocols import EvaluationProtocol, find_protocol
from evaluation.score.compare import check_reference, load_reference, warn_of_rank
from flowtrain.flow import path as paths
from flowtrain.flow.objective import make_objective
from flowtrain.flow.sampler import initial_noise, sample
from flowtrain.model import Params, Predict
from flowtrain.state.checkpoint import TrainedModel
from pipelines.encoders.decode import decode_samples, decoding_vae
from schemas.config import Recipe
from schemas.errors import UserError, reason_of
from schemas.files import write_atomic
from schemas.png import encode_png
from schemas.run import Run
from schemas.solvers import ADAPTIVE
from schemas.statistics import FeatureStatistics, Moments
from schemas.storage.temporary import temporary_folder

SEED = 0
MOST_AT_ONCE = 64  # samples
FOLD = 512  # samples decoded and summed at a time for a distance
BROKEN = (255, 0, 255)  # the colour of a sample that is not finite
_LARGEST = float(np.finfo(np.float16).max)

_Images = NDArray[np.uint8]


@dataclass(frozen=True)
class PreviewResult:
    """Pictures (H, W, 3) uint8 and numbers, by name."""

    images: dict[str, _Images]
    scalars: dict[str, float]


@dataclass(frozen=True)
class DistanceReference:
    """What samples are measured with and compared to."""

    protocol: EvaluationProtocol
    reference: FeatureStatistics


def make_preview(
    run: Run,
    dataset: Path,
    reference: Path | None,
    notify: Notify,
    *,
    directory: Path | None = None,
    make_bar: MakeBar | None = None,
) -> "Preview":
    """Check and load all that previews need. Writes nothing into a directory that is new.

    Args:
        run: what will be trained.
        dataset: the directory it is trained on.
        reference: statistics (.npz) or a dataset, for the distance; a dataset is measured now.
        notify: told of warnings, one line each, now and by the previews.
        directory: where the previews go as PNG files, or None.
        make_bar: makes a progress bar for measuring the reference.

    Raises:
        UserError: the recipe's previews cannot be drawn, the dataset is not the run's, its VAE
            cannot be had, or the reference is missing or cannot be compared with.
    """
    _warn_of_guidance(run, notify)
    examples = read_examples(dataset, run)
    if run.vae is not None:
        decoding_vae(run.vae)  # hours of training later would be too late to learn that it is gone
    comparison = _load_comparison(run, reference, directory, notify, make_bar)
    return Preview(run, examples, comparison, directory, notify)


def _warn_of_guidance(run: Run, notify: Notify) -> None:
    recipe = run.recipe
    if recipe.objective.label_drop == 0 and any(cfg != 1 for cfg in recipe.preview.cfg):
        notify(
            "previews with guidance: with objective.label_drop 0 the network never learns what to "
            "give without a label; set preview.cfg=[1.0]"
        )


def _load_comparison(
    run: Run,
    reference: Path | None,
    directory: Path | None,
    notify: Notify,
    make_bar: MakeBar | None,
) -> DistanceReference | None:
    config = run.recipe.preview
    recipe = find_protocol(config.protocol)
    if config.distance_samples == 0:
        if reference is not None:
            notify(
                "--reference is not used: preview.distance_samples is 0; set it to how many "
                "samples to compare"
            )
        return None
    if config.distance_samples == 1:
        raise UserError(
            "preview.distance_samples 1: a distance needs at least 2, and better thousands"
        )
    if reference is None:
        raise UserError(
            "preview.distance_samples needs --reference STATS|DATASET; make one with `flowtrain "
            "stats`, or set preview.distance_samples=0"
        )
    protocol = protocol_of(recipe, run.dataset.resolution)
    with temporary_folder() as scratch:
        # A work directory must stay empty until the run is begun; when it goes on, what was
        # measured is kept.
        folder = directory if directory is not None and directory.is_dir() else scratch
        statistics = load_reference(
            reference, recipe, folder, MeasureOptions(make_bar=make_bar)
        ).statistics
    check_reference(protocol, statistics, reference, notify)
    warn_of_rank(
        config.distance_samples, protocol.dim, "preview samples (preview.distance_samples)", notify
    )
    return DistanceReference(protocol, statistics)


def noise_times(path: paths.Path, levels: int) -> tuple[float, ...]:
    """The middles of `levels` equal parts of (0, 1), cleanest first.

    Of a diffusion the nearest whole levels, which may be fewer. Neither end is among them, where
    some kinds of prediction are singular.
    """
    middles = [path.grid(jnp.int32(2 * i + 1), jnp.int32(2 * levels)) for i in range(levels)]
    inside = {float(t) for t in middles if 0 < t < 1} or {
        float(path.grid(jnp.int32(1), jnp.int32(2)))
    }
    return tuple(sorted(inside, reverse=True))


class _Records(NamedTuple):
    """Records of a dataset in the model's scale, each with the noise that it is mixed with.

    Attributes:
        data: (n, h, w, c) float32.
        noise: (n, h, w, c) float32.
        label: (n,) int32.
    """

    data: jax.Array
    noise: jax.Array
    label: jax.Array


@functools.partial(jax.jit, static_argnames=("predict", "path", "output"))
def _reconstruct(
    predict: Predict,
    path: paths.Path,
    output: str,
    params: Params,
    records: _Records,
    t: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """At time t (): x_t and the data predicted from it, (n, h, w, c), and the error (n,)."""
    time = jnp.full(records.data.shape[:1], t)
    x = path.interpolate(records.noise, records.data, time)
    predicted = path.ends(output, predict(params, x, time, records.label), x, time).data
    return x, predicted, paths.squared_error(predicted, records.data)


@dataclass(frozen=True)
class Preview:
    """Draws a preview of the weights it is given. Made by `make_preview`."""

    run: Run
    examples: Examples
    comparison: DistanceReference | None
    directory: Path | None
    notify: Notify

    def __call__(self, trained: TrainedModel) -> PreviewResult:
        """Draw, measure, and write the pictures as PNG files if there is a directory for them.

        Images are `samples-{n}steps` for each n of `preview.steps`, or `samples-adaptive` of a
        solver that chooses its steps, and `reconstructions`. Scalars are `reconstruction_mse/t{t}`
        and, with a comparison, `{key}_{protocol}/cfg{w}`; those not finite are left out.

        Args:
            trained: the weights of this moment; `trained.predict` must be the same function at
                every call, or each compiles anew.
        """
        if self.run.recipe.sampler.solver == ADAPTIVE:
            images = {"samples-adaptive": self.samples(trained, None)}
        else:
            counts = dict.fromkeys(self.run.recipe.preview.steps)
            images = {f"samples-{steps}steps": self.samples(trained, steps) for steps in counts}
        images["reconstructions"], scalars = self.reconstructions(trained)
        if self.comparison is not None:
            scalars |= self.distances(trained, self.comparison)
        if self.directory is not None:
            try:
                write_previews(self.directory, trained.step, images)
            except UserError as error:
                self.notify(str(error))
        return PreviewResult(
            images, {name: value for name, value in scalars.items() if np.isfinite(value)}
        )

    def samples(self, trained: TrainedModel, steps: int | None) -> _Images:
        """A block of samples for each guidance; a row is a class, or where there is but one, more
        samples of it.

        `steps` is None where the solver chooses them.
        """
        guidances = dict.fromkeys(self.run.recipe.preview.cfg)
        numbers = grid_numbers(self.run)
        latents = [self._draw(trained, numbers.ravel(), steps or 1, cfg) for cfg in guidances]
        length = "1 step" if steps == 1 else f"{steps or 'adaptive'} steps"
        images = self._decode(trained, np.concatenate(latents), f"samples of {length}")
        images = images.reshape(len(latents), *numbers.shape, *images.shape[1:])
        captions = [f"{length}, guidance {cfg:g}" for cfg in guidances]
        blocks = [
            Panel(caption, tuple(block)) for caption, block in zip(captions, images, strict=True)
        ]
        names = [self.run.classes[label] for label in self.run.sampled_classes]
        return sheet(blocks, names[: len(numbers)] if len(names) > 1 else ())

    def reconstructions(self, trained: TrainedModel) -> tuple[_Images, dict[str, float]]:
        """Records with more and more noise, and what the network takes for the data in one step.

        The errors, `reconstruction_mse/t{t}`, are means over these records in the model's scale.
        """
        recipe, (latents, labels) = self.run.recipe, (self.examples.latents, self.examples.labels)
        path = make_objective(recipe.objective).path
        noise = initial_noise(jax.random.key(SEED), jnp.arange(len(labels)), self.run.latent_shape)
        records = _Records(jnp.asarray(latents), noise, jnp.asarray(labels))
        seen, found, errors = [latents], [latents], {}
        times = noise_times(path, recipe.preview.noise_levels)
        for t in times:
            x, data, error = _reconstruct(
                trained.predict,
                path,
                recipe.model.output,
                trained.params,
                records,
                jnp.float32(t),
            )
            seen.append(np.asarray(x))
            found.append(np.asarray(data))
            errors[f"reconstruction_mse/t{t:.3f}"] = float(np.mean(np.asarray(error)))
        images = self._decode(trained, np.concatenate([*seen, *found]), "reconstructions")
        rows = images.reshape(2, 1 + len(times), *(len(labels), *images.shape[1:]))
        captions = ("what the network sees", "its one-step prediction of the data")
        blocks = [
            Panel(caption, tuple(block)) for caption, block in zip(captions, rows, strict=True)
        ]
        return sheet(blocks, ["data", *(f"t = {t:.2f}" for t in times)]), errors

    def distances(self, trained: TrainedModel, comparison: DistanceReference) -> dict[str, float]:
        """Distances of the recipe's sampler, without guidance and with the recipe's."""
        sampler, protocol = self.run.recipe.sampler, comparison.protocol
        values = {}
        for cfg in dict.fromkeys((1.0, sampler.cfg)):
            moments = self._moments(trained, cfg, protocol)
            if moments is not None:
                statistics = FeatureStatistics.from_moments(moments, {})
                distance = statistics_distance(statistics, comparison.reference)
                values[f"{protocol.key}_{protocol.name}/cfg{cfg:g}"] = distance
        return values

    def _moments(
        self, trained: TrainedModel, cfg: float, protocol: EvaluationProtocol
    ) -> Moments | None:
        """Feature sums of the first samples, or None when one of them is not finite."""
        extractor = cache.extractor(protocol.extractor, protocol.prepare)
        moments = Moments.zero(protocol.dim)
        count, steps = self.run.recipe.preview.distance_samples, self.run.recipe.sampler.steps
        for start in range(0, count, FOLD):
            numbers = np.arange(start, min(start + FOLD, count), dtype=np.int64)
            latents = self._draw(trained, numbers, steps, cfg)
            images = self._decode(
                trained, latents, f"samples with guidance {cfg:g} for the distance"
            )
            if not np.isfinite(latents).all():
                return None
            moments += Moments.of(extractor(images).features)
        return moments

    def _draw(
        self, trained: TrainedModel, numbers: NDArray[np.int64], steps: int, cfg: float
    ) -> NDArray[np.float16]:
        """Samples (n, h, w, c) of some numbers, in float16 as they are stored, with the classes in
        turn.
        """
        recipe, classes = self.run.recipe, np.asarray(self.run.sampled_classes)
        labels = classes[numbers % len(classes)]
        settings = recipe.sampler.settings(steps=steps, cfg=cfg, seed=SEED)
        most = batch_size(recipe, grid_numbers(self.run).size)
        samples = sample(trained, labels, numbers, settings, batch_size=most)
        with np.errstate(over="ignore"):  # shows as not finite
            return samples.x.astype(np.float16)

    def _decode(self, trained: TrainedModel, latents: NDArray[np.floating], what: str) -> _Images:
        """Pixels (n, H, W, 3) of latents in the model's scale; what is not finite is shown in one
        loud colour.
        """
        finite = np.array([np.isfinite(one).all() for one in latents])
        if not finite.all():
            self.notify(
                f"preview of step {trained.step}: {(~finite).sum()} of {len(finite)} {what} are "
                "not finite"
            )
        shown = np.clip(np.where(finite[:, None, None, None], latents, 0), -_LARGEST, _LARGEST)
        images = decode_samples(
            shown, self.run.normalization, self.run.vae, self.run.dataset.resolution
        )
        images[~finite] = BROKEN
        return images


def grid_numbers(run: Run) -> NDArray[np.int64]:
    """The numbers (rows, columns) of the samples in a grid, a class a row. Samples have the
    classes in turn.
    """
    config, classes = run.recipe.preview, len(run.sampled_classes)
    if classes == 1:
        return np.arange(config.classes * config.columns, dtype=np.int64).reshape(
            config.classes, config.columns
        )
    rows = np.arange(min(config.classes, classes), dtype=np.int64)
    return rows[:, None] + classes * np.arange(config.columns, dtype=np.int64)[None, :]


def batch_size(recipe: Recipe, grid: int) -> int:
    """Samples at once: one number for all of a preview, so that the sampler is compiled once with
    and once without guidance. No more than go through the network in training, for which there is
    memory; evenly cut.
    """
    count = max(grid, recipe.preview.distance_samples)
    most = min(MOST_AT_ONCE, recipe.train.batch_size // recipe.train.accumulate)
    return -(-count // -(-count // most))


def write_previews(directory: Path, step: int, images: Mapping[str, _Images]) -> list[Path]:
    """Write pictures as `step{step:08d}-{name}.png`, each whole or not at all; the directory is
    made.

    Raises:
        UserError: they cannot be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            written.append(directory / f"step{step:08d}-{name}.png")
            write_atomic(written[-1], encode_png(image))
    except OSError as error:
        reason = reason_of(error)
        raise UserError(
            f"{directory}: the previews of step {step} cannot be written ({reason}); make room"
        ) from error
    return written
