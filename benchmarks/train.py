"""One training step of ours against the same step in PyTorch: side by side, one run, one device,
batches of one shape.

    python benchmarks/train.py                  S/2 on a CPU, B/2 on a GPU
    python benchmarks/train.py --size XL        XL/2
    python benchmarks/train.py --all            B/2 and XL/2, on a GPU

Needs jax, flax, optax, numpy and jaxtyping; torch if it is there. Both steps do: a sample of the
VAE's posterior, noise, logit-normal t, label drop, a DiT forward and backward, Adam, a moving
average of the parameters. Ours is `flowtrain.step`, as `train` runs it, which also measures norms
and losses by t and guards against updates that are not finite; the other does without. The peer, in
`torch_dit.py`: fused qkv, scaled_dot_product_attention, autocast to bfloat16 with the residual
stream in bfloat16 as ours, fused Adam, averages by _foreach_lerp_; as it is, and through
torch.compile. First both networks are given the same random weights, and their outputs compared.

Each framework is in a process of its own. `--turns` (default on a GPU, where both rarely fit)
measures ours, then PyTorch, then ours again; `--together` (default on a CPU) alternates in every
round. Shares are of the rate that JAX's matrix products of the same dtype reach between the rounds:
3 x 2 x multiply-accumulates of a forward pass, by formula.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare machine has the code but no installation

from benchmarks.jax_dit import Ours, plain_recipe  # noqa: E402  (after the path)
from benchmarks.sides import (  # noqa: E402
    CHECK_DEPTH,
    GPU_BATCH,
    SCAN_FROM_DEPTH,
    SIZES,
    Settings,
    Side,
    SideError,
)
from benchmarks.torch_dit import Torch  # noqa: E402
from schemas.text import aligned  # noqa: E402

Kind = type[Ours] | type[Torch]
# of float32 outputs; rounding is a few 1e-7, TensorFloat-32 1e-3, another network 1e-1
TOLERANCE = 1e-4


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, help="default: S on a CPU, B on a GPU")
    parser.add_argument("--all", action="store_true", help="B and XL, one after the other")
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument(
        "--batch-size", type=int, help="default: 8 on a CPU; 256, from L on 128, on a GPU"
    )
    parser.add_argument("--latent", default="32x32x4", help="height x width x channels")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="default: bfloat16 on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--scan", action=argparse.BooleanOptionalAction, help="default: as in recipes, from L on"
    )
    parser.add_argument(
        "--remat", action="store_true", help="compute activations again, on both sides"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts of a batch, one after another, on both sides",
    )
    parser.add_argument("--rounds", type=int, help="default: 3 on a GPU, 5 on a CPU")
    parser.add_argument("--steps", type=int, help="of a round; default: 10 on a GPU, 1 on a CPU")
    parser.add_argument(
        "--turns",
        action=argparse.BooleanOptionalAction,
        help="ours, PyTorch, ours; default on a GPU",
    )
    parser.add_argument(
        "--together", dest="turns", action="store_false", help="both alternate in every round"
    )
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other side needs memory too
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    with Side(Ours) as ours:
        facts = ours.ask("facts")
    gpu = facts["platform"] != "cpu"
    sizes = ["B", "XL"] if options.all else [options.size or ("B" if gpu else "S")]
    result = {**facts, "commit": _commit(), "load": os.getloadavg()[0], "runs": []}
    if not options.json:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        print(
            f"{facts['device']}; {versions}; commit {result['commit']}; load {result['load']:.1f}"
        )
    for size in sizes:
        run = measure(_settings(options, size, gpu), options, gpu)
        result["runs"].append(run)
        if not options.json:
            _print(run)
    if options.json:
        print(json.dumps(result))
    if not all("seconds" in run["rows"][0] for run in result["runs"]):
        sys.exit("our own step could not be timed; see the remark in its row")


def _settings(options: argparse.Namespace, size: str, gpu: bool) -> Settings:
    depth = SIZES[size][0]
    height, width, channels = map(int, options.latent.split("x"))
    return Settings(
        size=size,
        depth=depth,
        patch=options.patch,
        batch_size=options.batch_size or (GPU_BATCH[size] if gpu else 8),
        latent=(height, width, channels),
        dtype=options.dtype or ("bfloat16" if gpu else "float32"),
        scan=depth >= SCAN_FROM_DEPTH if options.scan is None else options.scan,
        remat=options.remat,
        accumulate=options.accumulate,
    )


@dataclass
class Figures:
    """What was found out so far, by name of the step or of the side."""

    checks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    ceilings: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def measure(settings: Settings, options: argparse.Namespace, gpu: bool) -> dict[str, Any]:
    """Every step, in rounds, for one size."""
    turns = gpu if options.turns is None else options.turns
    rounds, steps = options.rounds or (3 if gpu else 5), options.steps or (10 if gpu else 1)
    kinds: list[Kind] = [Ours, Torch] if options.torch else [Ours]
    visits: list[list[Kind]] = [[Ours], [Torch], [Ours]] if turns and options.torch else [kinds]
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"  # both compile from nothing,
        if turns:  # and ours only once: its second visit finds what the first one left
            os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        for visit in visits:
            with ExitStack() as stack:
                sides = [stack.enter_context(Side(kind)) for kind in visit]
                for side in sides:
                    _prepare(side, settings, folder, figures, options.torch)
                for _ in range(rounds):
                    for side in sides:
                        _round(side, steps, figures)
                for side in sides:
                    for name in side.steps:
                        figures.notes[name]["memory"] = side.ask("memory", name)
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return _summary(settings, figures)


def _prepare(side: "Side", settings: Settings, folder: str, figures: Figures, both: bool) -> None:
    """Compare, then build and compile; what fails becomes the remark of a row and is not timed."""
    try:
        if both and side.kind.label not in figures.checks:
            few = replace(settings, depth=min(settings.depth, CHECK_DEPTH))
            figures.checks[side.kind.label] = side.ask("check", few, folder)
        names, side.ready = side.ask("prepare", settings), True
    except SideError as reason:
        figures.notes.setdefault(side.kind.label, {"remark": str(reason)})
        return
    for name in names:
        try:
            note = side.ask("build", name)
        except SideError as reason:
            figures.notes.setdefault(name, {"remark": str(reason)})
        else:
            figures.notes.setdefault(name, note)  # that of the first visit, which had to compile
            side.steps.append(name)


def _round(side: "Side", steps: int, figures: Figures) -> None:
    if side.ready:
        figures.ceilings[side.kind.label].append(side.ask("ceiling"))
    for name in list(side.steps):
        try:
            figures.times[name].append(side.ask("time", name, steps))
        except SideError as reason:
            figures.notes[name]["remark"] = str(reason)
            side.steps.remove(name)


def _summary(settings: Settings, figures: Figures) -> dict[str, Any]:
    from flowtrain.model import forward_macs

    macs = forward_macs(plain_recipe(settings).model, settings.latent)
    ceilings = {name: statistics.median(found) for name, found in figures.ceilings.items()}
    ceiling = ceilings.get(Ours.label, math.nan)
    rows = []
    for name, note in figures.notes.items():
        row = {"step": name, **note}
        if figures.times[name]:
            seconds, cpu = zip(*figures.times[name], strict=True)
            row["seconds"], row["cpu_seconds"] = statistics.median(seconds), statistics.median(cpu)
            row["spread"] = (max(seconds) - min(seconds)) / row["seconds"]
            row["images_per_second"] = settings.batch_size / row["seconds"]
            row["flops"] = 6 * macs * row["images_per_second"]
            row["share"] = row["flops"] / ceiling
        rows.append(row)
    for row in rows:
        if "seconds" in row and "seconds" in rows[0]:
            row["ours_over_this"] = row["seconds"] / rows[0]["seconds"]
    run = {
        **vars(settings),
        "forward_macs": macs,
        "ceiling": ceiling,
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    if Torch.label in ceilings:
        run["torch_ceiling"] = ceilings[Torch.label]
    if len(figures.checks) == 2:
        run["check"] = _differences(figures.checks[Ours.label], figures.checks[Torch.label])
    return run


def _differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest differences of the outputs, in units of the largest output.

    Raises:
        SystemExit: in float32 it is not rounding; what would be timed is not the same network.
    """
    largest = float(np.abs(theirs["float32"]).max())

    def off(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max()) / largest

    found = {
        "float32": off(ours["float32"], theirs["float32"]),
        "bfloat16": off(ours["bfloat16"], theirs["bfloat16"]),
        "bfloat16_ours": off(ours["bfloat16"], theirs["float32"]),
        "bfloat16_torch": off(theirs["bfloat16"], theirs["float32"]),
    }
    if not found["float32"] < TOLERANCE:
        sys.exit(
            f"the networks differ by {found['float32']:.1e} of the largest output: not the same "
            "computation"
        )
    return found


def _print(run: dict[str, Any]) -> None:
    ways = [name for name in ("scan", "remat") if run[name]]
    ways += [f"in {run['accumulate']} parts"] if run["accumulate"] > 1 else []
    shape = "x".join(map(str, run["latent"]))
    print(
        f"\nDiT-{run['size']}/{run['patch']}, latent {shape}, batch {run['batch_size']}, "
        f"{run['dtype']}",
        *ways,
        sep=", ",
    )
    if "check" in run:
        off = run["check"]
        print(
            f"same weights, largest difference of outputs: float32 {off['float32']:.1e}, bfloat16 "
            f"{off['bfloat16']:.1e} (from float32: ours {off['bfloat16_ours']:.1e}, torch "
            f"{off['bfloat16_torch']:.1e})"
        )
    ceilings = f"matrix products, {run['dtype']}: {run['ceiling'] / 1e12:.3g} TFLOP/s by JAX"
    print(
        ceilings
        + (f", {run['torch_ceiling'] / 1e12:.3g} by torch" if "torch_ceiling" in run else "")
    )
    rows = []
    for row in run["rows"]:
        rate = [row["step"], "", "", "", "", "", ""]
        if "seconds" in row:
            rate[1] = f"{row['images_per_second']:.4g}"
            rate[2] = f"{row['ours_over_this']:.2f}" if "ours_over_this" in row else ""
            rate[3] = f"{row['flops'] / 1e12:.3g}"
            rate[4] = f"{row['share']:.1%}"
            rate[5] = f"{row['spread']:.0%}"
            rate[6] = f"{row['cpu_seconds']:.3g}"
        compiling = f"{row['compile_seconds']:.1f}" if row.get("compile_seconds") else ""
        memory = f"{row['memory'] / 2**30:.2f}" if row.get("memory") else ""
        rows.append((*rate, compiling, memory, row.get("remark", "")))
    head = (
        "step",
        "images/s",
        "ours/this",
        "TFLOP/s",
        "of ceiling",
        "spread",
        "CPU s a step",
        "compile s",
        "peak GiB",
        "",
    )
    _table(head, rows)
    print(f"load {run['load']:.1f}")


def _commit() -> str:
    """Of the working tree, with a plus where it has changes; a copy without git has none to
    tell.
    """
    with suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print(*aligned([tuple(map(str, row)) for row in [head, *rows]]), sep="\n")


if __name__ == "__main__":
    main()
