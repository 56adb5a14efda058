"""`flowtrain quickstart`: the public commands in turn, on embedded digits and VAE.

Each stage is a process of its own that talks to the next by files only, as on any other data.
Repeating the command goes on where it stopped, because each of its commands does.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from flowtrain.option_types import LocalPath

DIGITS = "embedded:digits"
STEPS = "100,20,5,1"
GUIDANCE = "1,4"


def stages(out: Path, overrides: Sequence[str], num_samples: int) -> dict[str, list[str]]:
    """The commands of the quickstart, by stage: arguments of `flowtrain`, ready to be typed."""
    latents, run, reference = str(out / "latents"), str(out / "run"), str(out / "reference.npz")
    changes = [argument for override in overrides for argument in ("--set", override)]
    samples = ["--num-samples", str(num_samples), "--protocol", "embedded"]
    return {
        "preprocess": [
            "preprocess",
            DIGITS,
            latents,
            *"--split train --resolution 32 --vae embedded --shards 4".split(),
        ],
        "train": ["train", latents, "--workdir", run, "--recipe", "digits", *changes],
        "stats": [
            "stats",
            DIGITS,
            reference,
            *"--split train --resolution 32 --extractor embedded".split(),
        ],
        "eval": [
            "eval",
            run,
            "--reference",
            reference,
            "--steps",
            STEPS,
            "--cfg",
            GUIDANCE,
            *samples,
        ],
        "report": ["report", run],
    }


@click.command()
@click.argument("out", type=LocalPath(writes=True, file_okay=False), default="quickstart")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override the recipe, as in `train`.",
)
@click.option(
    "--num-samples",
    type=click.IntRange(min=10, max=1_000_000),
    default=500,
    show_default=True,
    help="Samples a setting.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands and stop.")
def quickstart(out: Path, overrides: tuple[str, ...], num_samples: int, dry_run: bool) -> None:
    """Run every stage, small and offline, on 5,000 real handwritten digits; end with one HTML page.

    Example: flowtrain quickstart /tmp/digits
    """
    from flowtrain.recipes import find_recipe
    from schemas.recipes import load_recipe

    load_recipe(find_recipe("digits"), overrides)  # not minutes later, when it is trained
    seconds: dict[str, float] = {}
    for stage, arguments in stages(out, overrides, num_samples).items():
        click.secho(f"$ flowtrain {shlex.join(arguments)}", bold=True)
        if dry_run:
            continue
        begin = time.monotonic()
        code = _run(arguments)
        seconds[stage] = time.monotonic() - begin
        if code:
            click.echo(
                f"Error: the {stage} stage ended with status {code}; repeat the command to go on",
                err=True,
            )
            sys.exit(code if code > 0 else 128 - code)
    if not dry_run:
        spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
        click.echo(f"\nTime: {sum(seconds.values()):.0f} s ({spent})")
        click.secho(f"Page: {out / 'run' / 'report.html'}", bold=True)


def _run(arguments: Sequence[str]) -> int:
    """Run one command. Ctrl-C is the command's to handle, which saves before it ends; its status is
    handed on.
    """
    # not SIG_IGN, which the command would inherit
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run(
            [sys.executable, "-m", "flowtrain.cli", *arguments], check=False
        ).returncode
    finally:
        signal.signal(signal.SIGINT, before)
