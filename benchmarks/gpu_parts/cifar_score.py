"""Fréchet distances of samples to the images that were trained on, by the functions of `eval`,
without Beam.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.cifar_data import Latents, decode, decoder, save_grid
from benchmarks.gpu_parts.inputs import INCEPTION, find
from benchmarks.gpu_parts.part import Context
from benchmarks.gpu_parts.results import read_rows
from evaluation.extractors.inception import InceptionExtractor, load_inception
from evaluation.metrics.frechet import statistics_distance
from evaluation.protocols import PROTOCOLS, EvaluationProtocol
from flowtrain.flow.sampler import sample
from flowtrain.state.checkpoint import TrainedModel
from schemas.config import Recipe
from schemas.statistics import FeatureStatistics, Moments, read_statistics, write_statistics

PROTOCOL = "adm"
_BATCH = {"cpu": 16}
_GPU_BATCH = 500
_ROWS = 2560  # folded into the sums at once, whole batches of Inception
_SEED = 0


@dataclass(frozen=True)
class Drawn:
    """How samples are drawn: sampling steps, guidance weight, and how many."""

    steps: int
    cfg: float
    count: int


class Scorer:
    """Distances to one set of images under ADM's protocol; without weights, samples are drawn and
    not measured.

    Args:
        context: of the part.
        latents: of the images.
        pixels: the images (n, H, W, 3).
    """

    def __init__(self, context: Context, latents: Latents, pixels: NDArray[np.uint8]):
        self._context, self._latents = context, latents
        self._vae = decoder(latents)
        self._extractor: InceptionExtractor | None = None
        self.metric, self._facts = "", {"protocol": None, "extractor": None}
        path = find(context.work, INCEPTION)
        if path is not None:
            recipe = PROTOCOLS[PROTOCOL]
            self._extractor = load_inception(path, recipe.prepare, None)
            self._protocol = EvaluationProtocol.resolve(recipe, self._extractor, latents.resolution)
            self.metric = self._protocol.metric
            self._facts = {
                "protocol": self._protocol.name,
                "extractor": self._protocol.extractor_digest,
            }
            self._reference = self._statistics_of_images(pixels)

    def _statistics_of_images(self, pixels: NDArray[np.uint8]) -> FeatureStatistics:
        """Those of an earlier call, if they are of the same latents and weights."""
        digest = self._protocol.extractor_digest
        path = (
            self._context.work
            / "cifar"
            / f"reference-{self._latents.digest[:12]}-{digest[:12]}.npz"
        )
        if not path.is_file():
            write_statistics(path, self._statistics(pixels))
        return read_statistics(path)

    def _statistics(self, images: NDArray[np.uint8]) -> FeatureStatistics:
        assert self._extractor is not None
        parts = (images[begin : begin + _ROWS] for begin in range(0, len(images), _ROWS))
        moments = [Moments.of(self._extractor(part).features) for part in parts]
        return FeatureStatistics.from_moments(
            sum(moments[1:], moments[0]), self._protocol.model_dump()
        )

    def distance(self, images: NDArray[np.uint8]) -> float | None:
        """None without weights."""
        if self._extractor is None:
            return None
        return statistics_distance(self._reference, self._statistics(images))

    def images(self, name: str, images: NDArray[np.uint8]) -> dict[str, Any]:
        """The row of a set of images (n, H, W, 3)."""
        begin = time.perf_counter()
        row = {
            "of": name,
            "samples": len(images),
            "metric": self.metric,
            "distance": self.distance(images),
        }
        return row | {"seconds": time.perf_counter() - begin}

    def reconstructions(self, count: int) -> dict[str, Any]:
        """The row of images that were encoded and decoded: no sample gets nearer than about
        this.
        """
        chosen = np.linspace(
            0, len(self._latents.labels) - 1, min(count, len(self._latents.labels))
        ).astype(int)
        return self.images("reconstructions", decode(self._vae, self._latents.means[chosen]))

    def samples(
        self, name: str, trained: TrainedModel, recipe: Recipe, drawn: Drawn, *, shown: bool
    ) -> dict[str, Any]:
        """The row of one setting, kept for later calls.

        A grid of its first hundred samples goes to `pictures`, also of --out if `shown`.
        """
        row: dict[str, Any] = {"of": name, "step": trained.step, "weights": trained.weights}
        sampler = recipe.sampler
        row |= {
            "solver": sampler.solver,
            "sampling_steps": drawn.steps,
            "cfg": drawn.cfg,
            "shift": sampler.shift,
        }
        row |= {
            "cfg_channels": sampler.cfg_channels,
            "cfg_interval": list(sampler.cfg_interval),
            "seed": _SEED,
        }
        row |= {"samples": drawn.count, "metric": self.metric}
        row |= self._facts
        known = self._known(name, row)
        if known is not None:
            return known
        begin = time.perf_counter()
        images = self._draw(trained, recipe, drawn)
        seconds = time.perf_counter() - begin
        for folder in (
            self._context.work,
            *map(Path, self._context.options.get("out", []) if shown else ()),
        ):
            save_grid(
                images,
                folder / "pictures" / f"{name}-{trained.step}-{drawn.steps}-{drawn.cfg:g}.png",
            )
        row |= {"distance": self.distance(images), "draw_seconds": seconds}
        row |= {"seconds": time.perf_counter() - begin, "of_latents": self._latents.digest}
        with self._scores(name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        return row

    def _draw(self, trained: TrainedModel, recipe: Recipe, drawn: Drawn) -> NDArray[np.uint8]:
        import jax

        index = np.arange(drawn.count)
        labels = index % len(trained.run.classes)
        settings = recipe.sampler.settings(steps=drawn.steps, cfg=drawn.cfg, seed=_SEED)
        batch_size = _BATCH.get(jax.default_backend(), _GPU_BATCH)
        x = sample(trained, labels, index, settings, batch_size=batch_size).x
        normalization = trained.run.normalization
        scale, offset = (
            np.asarray(values, np.float32) for values in (normalization.scale, normalization.offset)
        )
        return decode(self._vae, x / scale[None, None, None] + offset[None, None, None])

    def _scores(self, name: str) -> Path:
        """Beside the checkpoints, and gone with them."""
        return self._context.work / "cifar" / name / "scores.jsonl"

    def _known(self, name: str, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row that an earlier call measured of the same setting, step, weights, latents and
        protocol.
        """
        path = self._scores(name)
        if not path.is_file():
            return None
        wanted = row | {"of_latents": self._latents.digest}
        for found in read_rows(path):  # one that was cut off is measured again
            if all(found.get(key) == value for key, value in wanted.items()):
                return found
        return None
