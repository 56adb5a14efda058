"""The parts of `flowtrain eval` against what else computes them: side by side, one run, one device,
the same input.

    python benchmarks/evaluate.py                              all parts
    python benchmarks/evaluate.py --only inception,frechet     some
    python benchmarks/evaluate.py --quick                      tiny: shows that they run

inception    features of uint8 images, from numpy to numpy, against the networks of torch-fidelity
             and pytorch-fid with the same random weights, without their readers of files (ours
             computes logits and sFID's features besides)
frechet      the distance of two Gaussians against scipy.linalg.sqrtm's form; both against a
             distance that is known
neighbours   precision and recall against ADM's algorithm in PyTorch: float32 on a CPU, float16 too
             on a GPU; ours decides as exact float64 distances do
screen       the same, of fewer rows, against plain float64 in NumPy and SciPy: distances from
             differences, as ours decides, and from products, which lose near rows and ties
sampling     `flowtrain.flow.sampler.sample`, Euler's method with guidance, against a loop in
             PyTorch over the same DiT
decode       the VAE's decoder in float32 against diffusers' AutoencoderKL
memory       peak of `evaluation.features.pipeline` at two numbers of images: it does not grow

Needs the checkout: stand-ins for torchvision come from tests/parity. A peer that is missing is
skipped, with the reason (`make parity` installs them all). Each framework is in a process of its
own. Outputs are compared first, and a difference that is not rounding ends the run; then ours and
the peers alternate, round after round. A ratio is the median over rounds of a peer's seconds
through ours, beside its least and its largest, and the median of their processor seconds, which
repeats better where others use the CPU too. There run it as `taskset -c 0 python ...`: on several
cores PyTorch's threads wait for one another, and its times say more about the others than about it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare machine has the code but no installation

from benchmarks.evaluate_data import Begun, Sizes, choose_sizes  # noqa: E402  (after the path)
from benchmarks.evaluate_ours import Memory, Ours  # noqa: E402
from benchmarks.evaluate_peers import SciPy, Torch  # noqa: E402
from benchmarks.jax_dit import Ours as Trainer  # noqa: E402
from benchmarks.sides import Side, SideError  # noqa: E402
from benchmarks.train import _commit, _table  # noqa: E402

VERSIONS = ("jax", "flax", "numpy", "scipy", "torch", "torch-fidelity", "pytorch-fid", "diffusers")
EXACT = 1e-10  # of a known distance; rounding is 1e-13
GROWTH, LEAST_GROWTH = 1.1, 32 << 20  # of memory; less is the allocator's
Check = Callable[[NDArray[Any], NDArray[Any], float], str]


class DisagreementError(Exception):
    """What would be timed is not the same computation."""


def agree(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> str:
    """Largest difference against the largest output. Raises `DisagreementError`."""
    if ours.shape != theirs.shape:
        raise DisagreementError(f"shapes differ: {ours.shape} and {theirs.shape}")
    off = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not off < tolerance:
        raise DisagreementError(
            f"outputs differ by {off:.1e} of the largest, which is not rounding"
        )
    return f"outputs differ by {off:.1e}"


def agree_on_distance(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> str:
    """Ours (distance, the exact one) and theirs (distance,). Raises `DisagreementError`."""
    (found, exact), (other,) = ours, theirs
    our_error, their_error = (abs(value - exact) / exact for value in (found, other))
    if not our_error < EXACT:
        raise DisagreementError(f"ours is {our_error:.1e} off a known distance")
    off = abs(found - other) / other
    if not off < tolerance:
        raise DisagreementError(f"distances differ by {off:.1e}")
    return (
        f"differ by {off:.1e}; off the known distance: ours {our_error:.0e}, this {their_error:.0e}"
    )


def agree_on_shares(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> str:
    """(precision, recall) of both. Raises `DisagreementError`."""
    words = ", ".join(f"{a:.4f} and {b:.4f}" for a, b in zip(ours, theirs, strict=True))
    if not np.abs(ours - theirs).max() <= tolerance:
        raise DisagreementError(f"precision and recall differ: {words}")
    return f"precision, recall: {words}"


@dataclass(frozen=True)
class Part:
    """What is timed against what: names of ours and of a peer, how far both may differ, and what is
    aimed at.

    `count` are the units of one run; `goals` the least ratios on a CPU and on a GPU, None without
    one.
    """

    unit: str
    count: Callable[[Sizes], int]
    peer: type[Torch] | type[SciPy]
    pairs: tuple[tuple[str, str, float], ...]
    check: Check = agree
    goals: tuple[float | None, float | None] = (None, None)
    peer_first: bool = False  # it writes the weights


# the last of 16 bits and TensorFloat-32
LOOP, VAE, ROUGH = (
    "PyTorch loop",
    "diffusers' AutoencoderKL",
    5e-2,
)
PARTS = {
    "inception": Part(
        "features/s",
        lambda sizes: sizes.images,
        Torch,
        (
            ("tf1-bilinear", "torch-fidelity", 1e-5),
            ("tf1-bilinear", "torch-fidelity, TF32", ROUGH),
            ("torch-bilinear", "pytorch-fid", 1e-5),
            ("torch-bilinear", "pytorch-fid, TF32", ROUGH),
        ),
        goals=(1.0, 1.5),
        peer_first=True,
    ),
    "frechet": Part(
        "distances/s",
        lambda sizes: 1,
        SciPy,
        (
            ("full rank", "sqrtm, full rank", 1e-6),
            ("rank-deficient", "sqrtm, rank-deficient", 1e-2),
        ),
        agree_on_distance,
        goals=(3.5, 3.5),
    ),
    "neighbours": Part(
        "rows/s",
        lambda sizes: 2 * sizes.rows,
        Torch,
        (
            ("precision_recall", "ADM's, float32", 2e-3),
            ("precision_recall", "ADM's, float16", ROUGH),
        ),
        agree_on_shares,
    ),
    "screen": Part(
        "rows/s",
        lambda sizes: 2 * sizes.screened,
        SciPy,
        (
            ("precision_recall", "differences, float64", 0.0),
            ("precision_recall", "products, float64", 2e-3),
        ),
        agree_on_shares,
        goals=(1.2, 1.2),
    ),
    "sampling": Part(
        "images/s",
        lambda sizes: sizes.samples,
        Torch,
        (("sample", LOOP, 1e-5), ("sample", f"{LOOP}, torch.compile", 1e-5)),
    ),
    "decode": Part(
        "images/s",
        lambda sizes: sizes.decoded,
        Torch,
        (("decode", VAE, 1e-5), ("decode", f"{VAE}, TF32", ROUGH)),
    ),
}
MEMORY = "memory"


def main() -> None:
    """Read the arguments, measure, print."""
    known = [*PARTS, MEMORY]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PART,...", help=f"some of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else known
    if unknown := set(names) - set(known):
        parser.error(f"--only {','.join(sorted(unknown))}: parts are {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other side needs memory too
    with Side(Trainer) as side:
        device = side.ask("facts")
    gpu = device["platform"] != "cpu"
    sizes, rounds = choose_sizes(options.quick, gpu), options.rounds or (1 if options.quick else 3)
    facts = {
        "device": device["device"],
        "platform": device["platform"],
        "versions": _versions(),
        "commit": _commit(),
    }
    result: dict[str, Any] = {
        **facts,
        "rounds": rounds,
        "loads": [os.getloadavg()[0]],
        "rows": [],
        "skipped": {},
    }
    for name in names:
        _say(f"{name} ...", options.json)
        try:
            if name == MEMORY:
                result[MEMORY] = measure_memory(sizes)
            else:
                rows, skipped = measure(name, sizes, rounds, gpu)
                result["rows"] += rows
                result["skipped"] |= skipped
        except DisagreementError as reason:
            sys.exit(f"{name}: {reason}")
        result["loads"].append(os.getloadavg()[0])
    print(json.dumps(result)) if options.json else _print(result)


def measure(
    name: str, sizes: Sizes, rounds: int, gpu: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the table for one part, and why others are missing.

    Raises:
        DisagreementError: outputs differ.
    """
    part, skipped = PARTS[name], dict[str, str]()
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, Side(Ours) as ours, Side(part.peer) as peer:
        begun: dict[Any, Begun] = {}
        for side in (peer, ours) if part.peer_first else (ours, peer):
            try:
                begun[side] = side.ask("begin", name, sizes, folder)
            except SideError as reason:  # also a framework that is missing
                return [], {name: f"{side.kind.label}: {reason}"}
        for side in begun:
            skipped |= {f"{name}, {what}": why for what, why in begun[side].skipped.items()}
        first, second = begun[ours].outputs, begun[peer].outputs
        pairs = [pair for pair in part.pairs if pair[0] in first and pair[1] in second]
        words = {(a, b): part.check(first[a], second[b], tolerance) for a, b, tolerance in pairs}
        turns = dict.fromkeys(
            (side, what) for a, b in words for side, what in ((ours, a), (peer, b))
        )
        for _ in range(rounds):  # the first outputs have warmed both up
            for side, what in turns:
                times[what].append(side.ask("time", what))
    rows = [_row(name, sizes, (a, b), times, gpu) | {"agreement": words[a, b]} for a, b in words]
    return rows, skipped


def _row(
    name: str,
    sizes: Sizes,
    pair: tuple[str, str],
    times: dict[str, list[tuple[float, float]]],
    gpu: bool,
) -> dict[str, Any]:
    part = PARTS[name]
    ours, peer = (np.array(times[what]) for what in pair)
    ratios, cpu = (peer / ours).T
    return {
        "part": name,
        "ours": pair[0],
        "against": pair[1],
        "unit": part.unit,
        "rate": part.count(sizes) / statistics.median(ours[:, 0]),
        "their_rate": part.count(sizes) / statistics.median(peer[:, 0]),
        "ratio": statistics.median(ratios),
        "spread": (float(ratios.min()), float(ratios.max())),
        "cpu_ratio": statistics.median(cpu),
        "goal": part.goals[gpu],
    }


def measure_memory(sizes: Sizes) -> dict[str, Any]:
    """Peaks in bytes at both numbers of images.

    Raises:
        DisagreementError: the larger number needs more.
    """
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes.memory:
            with Side(Memory) as side:
                peaks.append(side.ask("peak", count, sizes.dim, folder))
    check_growth(*peaks)
    return {"dim": sizes.dim, "images": sizes.memory, "peaks": peaks}


def check_growth(few: int, many: int) -> None:
    """Peaks in bytes at a smaller and a larger number of images. Raises `DisagreementError`."""
    if many > GROWTH * few and many - few > LEAST_GROWTH:
        raise DisagreementError(
            f"it grows with the number of images: {few / 2**20:.0f} and {many / 2**20:.0f} MiB"
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)


def _print(result: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rows = [
        (
            row["part"],
            row["ours"],
            row["against"],
            f"{row['rate']:.3g} {row['unit']}",
            f"{row['their_rate']:.3g}",
            f"{row['ratio']:.2f}",
            "{:.2f}-{:.2f}".format(*row["spread"]),
            f"{row['cpu_ratio']:.2f}",
            row["goal"] or "",
            row["agreement"],
        )
        for row in result["rows"]
    ]
    if rows:
        head = (
            "part",
            "ours",
            "against",
            "rate",
            "theirs",
            "ratio",
            "range",
            "CPU ratio",
            "goal",
            "",
        )
        _table(head, rows)
    if MEMORY in result:
        (few, many), (low, high) = result[MEMORY]["images"], result[MEMORY]["peaks"]
        print(
            f"memory of statistics of {result[MEMORY]['dim']} features: {few:,} images "
            f"{low / 2**20:.0f} MiB,",
            end=" ",
        )
        print(f"{many:,} images {high / 2**20:.0f} MiB: {high / low:.2f} of it")
    for what, why in result["skipped"].items():
        print(f"skipped: {what}: {why}")
    loads = ", ".join(f"{load:.1f}" for load in result["loads"])
    print(
        f"{result['device']}; {versions}; commit {result['commit']}; {result['rounds']} rounds; "
        f"load {loads}"
    )


if __name__ == "__main__":
    main()
