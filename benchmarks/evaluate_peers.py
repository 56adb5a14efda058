"""The peers of `benchmarks/evaluate.py`: PyTorch with the evaluators and diffusers that are there,
and SciPy.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluate_data import (
    CASES,
    NEIGHBOURS,
    Contenders,
    Sizes,
    draw_case,
    draw_features,
    draw_images,
    draw_labels,
    draw_latents,
)
from benchmarks.evaluate_ours import PARAMETERS, VAE, WEIGHTS, Runs
from benchmarks.sides import CLASSES
from benchmarks.torch_dit import _autocast, _jax_name, _torch_device, _torch_dit

ADM_BLOCK = 10_000
FLOAT64_BLOCK = 2_000


class SciPy(Contenders):
    """The distance by a matrix square root; precision and recall by plain float64."""

    label = "SciPy"

    def frechet(self, sizes: Sizes, folder: str) -> Runs:
        """(distance,)."""

        def run(name: str) -> Callable[[], NDArray[Any]]:
            *statistics, _ = draw_case(sizes.dim, name)
            return lambda: np.array([_sqrtm_distance(*statistics)])

        return {f"sqrtm, {name}": run(name) for name in CASES}

    def screen(self, sizes: Sizes, folder: str) -> Runs:
        """(precision, recall)."""
        real, fake = draw_features(replace(sizes, rows=sizes.screened))
        ways = {"differences, float64": _difference_distances, "products, float64": _dot_distances}
        return {
            name: lambda distances=distances: np.array(
                _float64_precision_recall(real, fake, distances)
            )
            for name, distances in ways.items()
        }


def _sqrtm_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """As pytorch-fid and ADM's evaluator have it: the root of the product, and again with 1e-6 on
    both diagonals where that is not finite; its real part."""
    from scipy import linalg

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of singular products: what comes of them is in the table
        root: Any = linalg.sqrtm(sigma1 @ sigma2)
        if not np.isfinite(root).all():
            shift = 1e-6 * np.eye(len(sigma1))
            root = linalg.sqrtm((sigma1 + shift) @ (sigma2 + shift))
    difference = mu1 - mu2
    return float(
        difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(np.real(root))
    )


Distances = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


def _difference_distances(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """(p, q) from sums of squared differences: a float64 result to its last digits."""
    from scipy.spatial.distance import cdist

    return cdist(a, b)


def _dot_distances(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """(p, q) from |u|^2 - 2 u.v + |v|^2 in float64: near rows and ties are lost in rounding."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = np.square(a).sum(1)[:, None] - 2 * (a @ b.T) + np.square(b).sum(1)[None, :]
    return np.sqrt(np.maximum(squared, 0))


def _float64_precision_recall(
    real: NDArray[Any], fake: NDArray[Any], distances: Distances
) -> tuple[float, float]:
    """By blocks of whole distances in NumPy, nothing screened."""

    def blocks(rows: NDArray[Any]) -> list[NDArray[Any]]:
        return [rows[start : start + FLOAT64_BLOCK] for start in range(0, len(rows), FLOAT64_BLOCK)]

    def radii(rows: NDArray[Any]) -> NDArray[np.float64]:
        # a row itself is one of the k + 1 nearest
        nearest = [np.partition(distances(one, rows), NEIGHBOURS, axis=1) for one in blocks(rows)]
        return np.concatenate([found[:, NEIGHBOURS] for found in nearest])

    radii_real, radii_fake = radii(real), radii(fake)
    in_real, in_fake = np.zeros(len(fake), bool), list[NDArray[np.bool_]]()
    for one, around in zip(blocks(real), blocks(radii_real), strict=True):
        found = distances(one, fake)
        in_real |= (found <= around[:, None]).any(axis=0)
        in_fake.append((found <= radii_fake).any(axis=1))
    return float(in_real.mean()), float(np.concatenate(in_fake).mean())


class Torch(Contenders):
    """Networks in PyTorch, on its default device."""

    label = "torch"

    def inception(self, sizes: Sizes, folder: str) -> Runs:
        """Features by torch-fidelity's network and pytorch-fid's; leaves the weights that all sides
        load.
        """
        import torch

        from tests.parity.torch_inception import random_weights
        from tests.parity.torchvision_blocks import torchvision_stand_in

        weights, device, images = (
            random_weights(Path(folder, WEIGHTS)),
            _torch_device(),
            draw_images(sizes),
        )
        pixels = [
            torch.from_numpy(images[i : i + sizes.batch])
            for i in range(0, len(images), sizes.batch)
        ]

        def fidelity() -> Callable[[Any], Any]:
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], str(weights)
            ).to(device)
            return lambda x: network(x)[0]

        def pytorch_fid() -> Callable[[Any], Any]:
            module: Any = importlib.import_module("pytorch_fid.inception")
            module.load_state_dict_from_url = lambda *_, **__: torch.load(
                weights, weights_only=True
            )
            network = module.InceptionV3().to(device).eval()
            return lambda x: network(x.float() / 255)[0][:, :, 0, 0]

        def run(features: Callable[[Any], Any]) -> NDArray[Any]:
            with torch.inference_mode():
                found = [features(batch.to(device).permute(0, 3, 1, 2)) for batch in pixels]
                return torch.cat(found).cpu().numpy()

        runs: Runs = {}
        for name, load in {"torch-fidelity": fidelity, "pytorch-fid": pytorch_fid}.items():
            try:
                with torchvision_stand_in():
                    features = load()
            except ImportError as reason:
                self.skipped[name] = f"{name} is not installed ({reason})"
            else:
                runs |= _in_both_precisions(name, lambda features=features: run(features))
        return runs

    def neighbours(self, sizes: Sizes, folder: str) -> Runs:
        """(precision, recall). In float16 on a GPU too: on CPUs it is emulated."""
        import torch

        real, fake = (torch.from_numpy(rows).to(_torch_device()) for rows in draw_features(sizes))
        types = [torch.float32] + ([torch.float16] if real.is_cuda else [])

        def run(dtype: Any) -> NDArray[Any]:
            with torch.inference_mode():
                return np.array(_adm_precision_recall(real, fake, dtype))

        return {
            f"ADM's, {dtype}".replace("torch.", ""): lambda dtype=dtype: run(dtype)
            for dtype in types
        }

    def sampling(self, sizes: Sizes, folder: str) -> Runs:
        """Samples by a loop in Python over the same network, both of a pair in one batch, as DiT
        and SiT do.
        """
        import torch

        settings, device = sizes.network, _torch_device()
        network = _torch_dit(settings).to(device).eval()
        with np.load(Path(folder, PARAMETERS)) as named, torch.no_grad():
            for name, parameter in network.named_parameters():
                value = torch.from_numpy(named[_jax_name(name)])
                parameter.copy_(
                    value.T if value.ndim == 2 and name != "label_embed.weight" else value
                )
            noise = torch.from_numpy(named["noise"]).to(device)
        labels = torch.from_numpy(draw_labels(sizes, CLASSES)).to(device).long()

        def draw(predict: Callable[..., Any], dtype: str) -> NDArray[Any]:
            both, x = torch.cat([labels, torch.full_like(labels, CLASSES)]), noise
            with torch.inference_mode():
                for step in range(sizes.steps):
                    t = torch.full((len(both),), step / sizes.steps, device=device)
                    with _autocast(dtype):
                        conditional, unconditional = (
                            predict(torch.cat([x, x]), t, both).float().chunk(2)
                        )
                    x = (
                        x
                        + (unconditional + sizes.cfg * (conditional - unconditional)) / sizes.steps
                    )
            return x.cpu().numpy()

        predicts: dict[str, Any] = {"PyTorch loop": network}
        if sizes.compiled:
            predicts["PyTorch loop, torch.compile"] = torch.compile(network, dynamic=False)
        if settings.dtype != "float32" or device.type == "cuda":
            torch.set_float32_matmul_precision("highest")
            self.checked = dict.fromkeys(predicts, draw(network, "float32"))
        return {
            name: lambda predict=predict: draw(predict, settings.dtype)
            for name, predict in predicts.items()
        }

    def decode(self, sizes: Sizes, folder: str) -> Runs:
        """Images of latents by diffusers' AutoencoderKL, NHWC as ours."""
        import torch

        from pipelines.encoders.locate import find_vae
        from tests.parity.torch_vae import import_diffusers

        name = "diffusers' AutoencoderKL"
        if importlib.util.find_spec("diffusers") is None:
            self.skipped[name] = "diffusers is not installed"
            return {}
        device, latents = _torch_device(), torch.from_numpy(draw_latents(sizes))
        directory = find_vae(sizes.vae).directory if sizes.vae != "random" else Path(folder, VAE)
        vae = import_diffusers().AutoencoderKL.from_pretrained(directory).to(device).eval()

        def run() -> NDArray[Any]:
            with torch.inference_mode():
                return (
                    vae.decode(latents.to(device).permute(0, 3, 1, 2))
                    .sample.permute(0, 2, 3, 1)
                    .cpu()
                    .numpy()
                )

        return _in_both_precisions(name, run)


def _in_both_precisions(name: str, run: Callable[[], NDArray[Any]]) -> Runs:
    """As exact as ours; and on a GPU also as PyTorch comes, with convolutions in TensorFloat-32."""
    import torch

    def exactly(exact: bool) -> NDArray[Any]:
        torch.backends.cudnn.allow_tf32 = not exact
        return run()

    runs = {name: lambda: exactly(True)}
    return runs | (
        {f"{name}, TF32": lambda: exactly(False)} if _torch_device().type == "cuda" else {}
    )


def _adm_precision_recall(real: Any, fake: Any, dtype: Any) -> tuple[float, float]:
    """By blocks of whole distance matrices, with the k-th of each row found among k + 1, itself one
    of them.

    The algorithm of evaluations/evaluator.py of openai/guided-diffusion: squared distances |u|^2 -
    2 u.v + |v|^2, cut at 0, in float16 where no value of the block overflows and else in float32;
    np.partition on all cores.
    """
    import torch

    def squared(u: Any, v: Any, kind: Any) -> Any:
        u, v = u.to(kind), v.to(kind)
        sizes = u.square().sum(1)[:, None], v.square().sum(1)[None, :]
        return (sizes[0] - 2 * (u @ v.T) + sizes[1]).clamp_min(0)

    def distances(u: Any, v: Any) -> Any:
        found = squared(u, v, dtype)
        if dtype == torch.float16 and not found.isfinite().all():
            found = squared(u, v, torch.float32)
        return found.float()

    def radii(features: Any) -> Any:
        parts = []
        for one in features.split(ADM_BLOCK):
            block = (
                torch.cat([distances(one, two) for two in features.split(ADM_BLOCK)], 1)
                .cpu()
                .numpy()
            )
            parts += _partitioned(block, NEIGHBOURS)
        return torch.from_numpy(np.concatenate(parts)).to(features.device)

    radii_real, radii_fake = radii(real), radii(fake)
    in_real, in_fake = (
        torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for rows in (fake, real)
    )
    for i in range(0, len(real), ADM_BLOCK):
        for j in range(0, len(fake), ADM_BLOCK):
            rows, columns = slice(i, i + ADM_BLOCK), slice(j, j + ADM_BLOCK)
            block = distances(real[rows], fake[columns])
            in_real[columns] |= (block <= radii_real[rows, None]).any(0)
            in_fake[rows] |= (block <= radii_fake[None, columns]).any(1)
    return float(in_real.double().mean()), float(in_fake.double().mean())


def _partitioned(block: NDArray[np.float32], k: int) -> list[NDArray[np.float32]]:
    """The k-th of every row, counted from 0."""
    cores = len(os.sched_getaffinity(0))

    def parts() -> Iterator[NDArray[np.float32]]:
        yield from np.array_split(block, cores)

    with ThreadPoolExecutor(cores) as pool:
        return list(
            pool.map(lambda rows: np.partition(rows, np.arange(k + 1), axis=1)[:, k], parts())
        )
