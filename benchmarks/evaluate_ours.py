"""Our side of `benchmarks/evaluate.py`, and the peak memory of our pipeline."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluate_data import (
    CASES,
    NEIGHBOURS,
    SAMPLING_SEED,
    Contenders,
    Sizes,
    draw_case,
    draw_features,
    draw_images,
    draw_labels,
    draw_latents,
)
from benchmarks.sides import CLASSES, Settings

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel

Runs = dict[str, Callable[[], NDArray[Any]]]
# in the folder that both sides see
WEIGHTS, PARAMETERS, VAE = (
    "inception.pth",
    "parameters.npz",
    "vae",
)


class Ours(Contenders):
    """What `flowtrain eval` calls."""

    label = "flowtrain"

    def inception(self, sizes: Sizes, folder: str) -> Runs:
        """Features of uint8 images, in the two preparations that the peers have."""
        from evaluation.extractors.inception import load_inception

        first = load_inception(Path(folder, WEIGHTS), "tf1-bilinear", None, sizes.batch)
        second, images = replace(first, prepare="torch-bilinear"), draw_images(sizes)
        return {
            "tf1-bilinear": lambda: first(images).features,
            "torch-bilinear": lambda: second(images).features,
        }

    def frechet(self, sizes: Sizes, folder: str) -> Runs:
        """(distance, the exact one)."""
        from evaluation.metrics import frechet_distance

        def run(name: str) -> Callable[[], NDArray[Any]]:
            *statistics, exact = draw_case(sizes.dim, name)
            return lambda: np.array([frechet_distance(*statistics), exact])

        return {name: run(name) for name in CASES}

    def neighbours(self, sizes: Sizes, folder: str) -> Runs:
        """(precision, recall)."""
        from evaluation.metrics.neighbours import precision_recall

        real, fake = draw_features(sizes)
        return {"precision_recall": lambda: np.array(precision_recall(real, fake, NEIGHBOURS))}

    def screen(self, sizes: Sizes, folder: str) -> Runs:
        """(precision, recall) of fewer rows."""
        return self.neighbours(replace(sizes, rows=sizes.screened), folder)

    def sampling(self, sizes: Sizes, folder: str) -> Runs:
        """Samples from `sample`; leaves weights and noise for the peer."""
        import jax

        from flowtrain.flow.sampler import initial_noise, sample
        from flowtrain.state.checkpoint import TrainedModel
        from schemas.sampler import SamplerSettings

        shape, labels, indices = (
            sizes.network.latent,
            draw_labels(sizes, CLASSES),
            np.arange(sizes.samples),
        )

        settings = SamplerSettings("euler", sizes.steps, sizes.cfg, seed=SAMPLING_SEED)

        def prepare(dtype: str) -> TrainedModel:
            return random_model(replace(sizes.network, dtype=dtype), sizes.samples)

        def draw(trained: TrainedModel) -> NDArray[np.float32]:
            return sample(trained, labels, indices, settings, batch_size=sizes.samples).x

        trained = prepare(sizes.network.dtype)
        leaves = jax.tree_util.tree_leaves_with_path(trained.params)
        named: dict[str, Any] = {
            ".".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves
        }
        noise = np.asarray(initial_noise(jax.random.key(SAMPLING_SEED), indices, shape))
        np.savez(Path(folder, PARAMETERS), noise=noise, **named)
        # before anything is rounded
        if sizes.network.dtype != "float32" or jax.default_backend() != "cpu":
            with jax.default_matmul_precision("highest"):
                self.checked["sample"] = draw(prepare("float32"))
        return {"sample": lambda: draw(trained)}

    def decode(self, sizes: Sizes, folder: str) -> Runs:
        """Images of latents, in float32; leaves the VAE for the peer, as a folder that diffusers
        reads.
        """
        from benchmarks.vae_precision import write_random_vae
        from pipelines.encoders.weights import load_vae

        name = sizes.vae if sizes.vae != "random" else write_random_vae(Path(folder, VAE))
        vae, latents = load_vae(name), draw_latents(sizes)
        return {"decode": lambda: np.asarray(vae.decode(cast("Any", latents)))}


def random_model(settings: Settings, batch_size: int) -> "TrainedModel":
    """A DiT of which no weight is zero, where samples of that batch size are drawn."""
    from benchmarks.jax_dit import _random_parameters, plain_recipe
    from flowtrain.flow.sampler import spread
    from flowtrain.model import make_network
    from flowtrain.state.checkpoint import TrainedModel

    recipe = plain_recipe(settings)
    run: Any = SimpleNamespace(recipe=recipe, latent_shape=settings.latent, classes=("",) * CLASSES)
    network = make_network(recipe.model, settings.latent, CLASSES)
    params = _random_parameters(network.abstract)
    return spread(TrainedModel(run, 0, "params", network.predict, params), batch_size)


@dataclass(frozen=True)
class _Noise:
    """Small images that are made as they are asked for."""

    size: int
    resolution: int = 8
    classes: tuple[str, ...] = ("noise",)

    def facts(self) -> dict[str, Any]:
        return {"kind": "noise"}

    def state(self) -> str:
        return ""

    def read(self, start: int, stop: int) -> Any:
        from evaluation.features.imagesets import Batch

        rng, shape = (
            np.random.default_rng(start),
            (stop - start, self.resolution, self.resolution, 3),
        )
        return Batch(rng.integers(0, 256, shape, np.uint8), np.zeros(stop - start, np.int64))


class _Projection:
    """A feature network of next to no work."""

    name, digest, spatial_dim, class_names = "projection", "0" * 64, 0, ()

    def __init__(self, dim: int) -> None:
        self.dim, self.weights = (
            dim,
            np.random.default_rng(0).standard_normal((192, dim), np.float32),
        )

    def __call__(self, images: NDArray[np.uint8]) -> Any:
        from evaluation.extractors.outputs import Outputs

        rows = np.maximum(images.reshape(len(images), -1).astype(np.float32) @ self.weights, 0)
        return Outputs(rows, np.zeros((len(rows), 1), np.float32))


class Memory:
    """A process that measures itself; a fresh one for each number of images."""

    label = "memory"

    def peak(self, count: int, dim: int, folder: str) -> int:
        """Bytes of anonymous memory at most while `evaluation.features.pipeline` makes statistics
        of so many images.
        """
        from evaluation import extractors
        from evaluation.features import pipeline
        from evaluation.protocols import EvaluationProtocol

        network = _Projection(dim)
        entry = extractors.Entry(lambda *_: cast("Any", network), dim)
        cast("dict[str, Any]", extractors.EXTRACTORS)[network.name] = entry
        words = {
            "name": "memory",
            "extractor": network.name,
            "metric": "FD",
            "key": "fd",
            "resize": "",
        }
        protocol = EvaluationProtocol.model_validate(
            {**words, "extractor_digest": network.digest, "dim": dim, "resolution": 8}
        )
        config = pipeline.Config(_Noise(count), protocol, str(Path(folder, f"{count}.npz")))
        with _Watched() as watched:
            statistics = pipeline.run(config)
        if statistics.moments is None or statistics.moments.n != count:
            raise ValueError(f"the pipeline did not see {count} images")
        return watched.peak


class _Watched:
    """The largest anonymous memory of this process within the block, looked up every 10 ms;
    Linux.
    """

    def __enter__(self) -> "_Watched":
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            (kibibytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, 1024 * int(kibibytes))
