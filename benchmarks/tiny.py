"""TAEF2 beside PyTorch on a CPU: encode and decode, eager and compiled, both memory formats,
interleaved in one run.

    python benchmarks/tiny.py --weights ../shared/data/taef2 --rounds 5

Ours runs as `flowtrain preprocess` and the decoder run it, in parts of
`pipelines.encoders.encode.CPU_PIXELS` (encode) and `pipelines.encoders.decode.decode_batch_size`
(decode); PyTorch gets the whole batch, which is how its users call it, and the single image. Needs
torch.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.preprocess import _interleaved, _table, _versions  # noqa: E402  (after the path)

Run = Callable[[], Any]


def main() -> None:
    """Read the arguments, compare the outputs, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=ROOT.parent / "shared" / "data" / "taef2")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(_versions())
    shape = (options.batch_size, options.resolution, options.resolution, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ours, latents = our_runs(options.weights, pixels)
    theirs = torch_runs(options.weights, pixels, latents)
    for half in ("encode", "decode"):
        runs = {"flowtrain": ours[half], **theirs[half]}
        difference = np.abs(runs["flowtrain"]() - runs["eager, NCHW"]()).max()
        times = _interleaved(runs, options.rounds)
        best = min(seconds for name, seconds in times.items() if name != "flowtrain")
        rows = [(name, f"{best / seconds:.2f}") for name, seconds in times.items()]
        print(
            f"\n{half}, {options.batch_size} at {options.resolution} px; largest difference "
            f"{difference:.1e}"
        )
        _table(("", "of best torch"), rows)


def our_runs(weights: Path, pixels: np.ndarray) -> tuple[dict[str, Run], np.ndarray]:
    """Our encode and decode, and the latents (n, h, w, c) that the latter takes."""
    import jax.numpy as jnp

    from pipelines.encoders.decode import decode_batch_size
    from pipelines.encoders.encode import CPU_PIXELS, part_size
    from pipelines.encoders.weights import load_vae

    vae = load_vae(str(weights))
    count, side = pixels.shape[:2]
    encoded = part_size(count, side**2, CPU_PIXELS["AutoencoderTiny"])
    decoded = min(count, decode_batch_size(side))

    def encode() -> np.ndarray:
        parts = [
            vae.encode_pixels(jnp.asarray(pixels[at : at + encoded]))
            for at in range(0, count, encoded)
        ]
        return np.concatenate([np.asarray(part[0]) for part in parts])

    latents = encode()

    def decode() -> np.ndarray:
        parts = [
            vae.decode(jnp.asarray(latents[at : at + decoded])) for at in range(0, count, decoded)
        ]
        return np.concatenate([np.asarray(part) for part in parts])

    return {"encode": encode, "decode": decode}, latents


def torch_runs(weights: Path, pixels: np.ndarray, latents: np.ndarray) -> dict[str, dict[str, Run]]:
    """PyTorch's, by half and name; each gives NHWC, in [-1, 1] where it decodes."""
    import torch

    from tests.parity.torch_tiny import load_taef2

    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255
    inputs = {"encode": images, "decode": torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())}
    formats = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
    runs: dict[str, dict[str, Run]] = {half: {} for half in inputs}

    def run(network: Any, given: Any, decodes: bool) -> Run:
        def once() -> np.ndarray:
            with torch.inference_mode():
                found = network(given).numpy().transpose(0, 2, 3, 1)
            return 2 * found - 1 if decodes else found

        return once

    for kind, memory_format in formats.items():
        for half, network in zip(inputs, load_taef2(weights), strict=True):
            module = network.to(memory_format=memory_format)
            given = inputs[half].contiguous(memory_format=memory_format)
            runs[half][f"eager, {kind}"] = run(module, given, half == "decode")
            runs[half][f"compiled, {kind}"] = run(torch.compile(module), given, half == "decode")
    return runs


if __name__ == "__main__":
    main()
