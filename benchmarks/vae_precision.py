"""How far a VAE in bfloat16 is from the same VAE in float32, on real images.

    python benchmarks/vae_precision.py --images FOLDER    Stable Diffusion's, random weights
    python benchmarks/vae_precision.py --images FOLDER --vae stabilityai/sd-vae-ft-mse
    python benchmarks/vae_precision.py --images FOLDER --vae embedded --resolution 64 --num 100

Prints one table, bfloat16 beside the rounding to float16 that every stored value sees. The spread
is the standard deviation of all values of the means; the posterior's deviation is each value's own.
The last rows decode: peak signal-to-noise ratios of uint8 images, in dB, mean over the images.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images import CROPS, decode_image
from schemas.pixels import to_uint8

if TYPE_CHECKING:
    from pipelines.encoders.weights import Vae

IMAGES = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "imagenet_sample"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
RANDOM = "random"
BATCH = 4

Floats = NDArray[np.float32]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of images")
    parser.add_argument("--vae", default=RANDOM, help=f"as for `flowtrain preprocess`, or {RANDOM}")
    parser.add_argument("--vae-revision", default=None)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument(
        "--num", type=int, default=8, help="number of images, spread evenly over the folder"
    )
    options = parser.parse_args()
    pixels = read_images(options.images, options.num, options.resolution)
    with tempfile.TemporaryDirectory() as folder:
        name = write_random_vae(Path(folder)) if options.vae == RANDOM else options.vae
        rows = measure(pixels, name, options.vae_revision)
    import jax

    print(
        f"{len(pixels)} images of {options.resolution} px, VAE {options.vae}, "
        f"{jax.devices()[0].device_kind}\n"
    )
    print("| difference from float32 | bfloat16 | float16 rounding |")
    print("| --- | --- | --- |")
    for label, bfloat16, float16 in rows:
        print(f"| {label} | {bfloat16:.4g} | {float16:.4g} |".replace("nan", "-"))


def read_images(folder: Path, count: int, resolution: int) -> NDArray[np.uint8]:
    """(n, resolution, resolution, 3), cropped as `preprocess` does."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"no images in {folder}; give a folder of them with --images")
    chosen = files[:: max(1, len(files) // count)][:count]
    return np.stack([CROPS["adm"](decode_image(path.read_bytes()), resolution) for path in chosen])


def write_random_vae(directory: Path) -> str:
    """The architecture of Stable Diffusion's VAE with random weights, norm scales and biases among
    them.
    """
    import jax
    from flax import nnx

    from pipelines.encoders.kl import AutoencoderKL
    from pipelines.encoders.kl_config import VaeConfig
    from pipelines.encoders.weights import save_vae

    config = VaeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    graphdef, state = nnx.split(AutoencoderKL(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def drawn(path: Any, value: jax.Array) -> Any:
        if value.ndim > 1:
            return value
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(rng.uniform(centre - 0.3, centre + 0.3, value.shape))

    state = jax.tree_util.tree_map_with_path(drawn, state)
    save_vae(nnx.merge(graphdef, state), config, directory)
    return str(directory)


def measure(
    pixels: NDArray[np.uint8], name: str, revision: str | None
) -> list[tuple[str, float, float]]:
    """Rows of the table: label, bfloat16 against float32, float16's rounding of float32 against
    float32.
    """
    from pipelines.encoders.weights import load_vae

    wide, narrow = load_vae(name, "float32", revision), load_vae(name, "bfloat16", revision)
    mean, logvar = encode(wide, pixels)
    low_mean, low_logvar = encode(narrow, pixels)
    rounded, rounded_logvar = (
        values.astype(np.float16).astype(np.float32) for values in (mean, logvar)
    )
    deviation = np.exp(logvar / 2)
    differences = (
        (
            "mean, RMS, in spreads",
            (low_mean - mean) / mean.std(),
            (rounded - mean) / mean.std(),
            rms,
        ),
        (
            "mean, largest, in spreads",
            (low_mean - mean) / mean.std(),
            (rounded - mean) / mean.std(),
            largest,
        ),
        (
            "mean, RMS, in deviations of the posterior",
            (low_mean - mean) / deviation,
            (rounded - mean) / deviation,
            rms,
        ),
        (
            "mean, largest, likewise",
            (low_mean - mean) / deviation,
            (rounded - mean) / deviation,
            largest,
        ),
        ("log-variance, RMS", low_logvar - logvar, rounded_logvar - logvar, rms),
        ("log-variance, largest", low_logvar - logvar, rounded_logvar - logvar, largest),
    )
    rows = [(label, size(low), size(half)) for label, low, half, size in differences]
    print(
        f"spread of the means {mean.std():.3g}, median deviation of the posterior "
        f"{np.median(deviation):.3g}"
    )
    best = decode(wide, mean)
    from_low, from_rounded = decode(wide, low_mean), decode(wide, rounded)
    reference = f"(float32: {psnr(best, pixels):.2f})"
    return [
        *rows,
        (
            f"PSNR of the reconstruction {reference}",
            psnr(from_low, pixels),
            psnr(from_rounded, pixels),
        ),
        (
            f"the same, decoded in bfloat16 {reference}",
            psnr(decode(narrow, low_mean), pixels),
            float("nan"),
        ),
        (
            "PSNR between the reconstruction and float32's",
            psnr(best, from_low),
            psnr(best, from_rounded),
        ),
    ]


def encode(vae: "Vae", pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Mean and log-variance (n, h, w, c) of images (n, H, W, 3)."""
    moments = [vae.encode_pixels(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    mean, logvar = (np.concatenate(parts) for parts in zip(*moments, strict=True))
    return mean, logvar


def decode(vae: "Vae", mean: Floats) -> NDArray[np.uint8]:
    """Images (n, H, W, 3) of raw latents (n, h, w, c)."""
    return to_uint8(
        np.concatenate([vae.decode(mean[i : i + BATCH]) for i in range(0, len(mean), BATCH)])
    )


def rms(values: Floats) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def largest(values: Floats) -> float:
    """Largest absolute value."""
    return float(np.abs(values).max())


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean over images of each one's PSNR in dB, peak 255."""
    errors = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(errors, 1e-10))).mean())


if __name__ == "__main__":
    main()
