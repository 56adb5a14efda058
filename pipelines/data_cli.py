"""`flowtrain data`: look at datasets, check them, compare them, join them."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from pipelines.option_types import COUNT
from schemas.text import printable

DIFFERENT = DAMAGED = 1
GRID_RECORDS = 64
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

GROUP_EPILOG = """\b
Examples:
  flowtrain data inspect latents --grid grid.png
  flowtrain data verify gs://bucket/latents
  flowtrain data diff latents-a latents-b
  flowtrain data merge latents-a latents-b latents-ab

A dataset is a directory that holds a manifest.json, on a disk, at gs:// or at s3://."""


@click.group(epilog=GROUP_EPILOG)
def data() -> None:
    """Look at datasets, check them, compare them, join them."""


@data.command(short_help="What a dataset is: card, classes, a picture of its images.")
@click.argument("directory", metavar="DIR")
@_JSON
@click.option("--grid", type=click.Path(dir_okay=False), help="Write decoded records to this PNG.")
@click.option("--num", type=COUNT, help=f"Records in the grid.  [default: {GRID_RECORDS}]")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Which records are in the grid.  [default: 0]"
)
def inspect(
    directory: str, as_json: bool, grid: str | None, num: int | None, seed: int | None
) -> None:
    """Show what the dataset DIR is, how many records each class has, and, with --grid, what they
    look like.

    Example: flowtrain data inspect latents --grid grid.png --num 36
    """
    from pipelines.curate import inspect
    from pipelines.dataset.anywhere import open_dataset
    from pipelines.dataset.card import counted
    from schemas.errors import UserError

    if grid is None and (num is not None or seed is not None):
        raise UserError(
            "--num and --seed choose the records of a picture; give --grid FILE.png as well"
        )
    if grid is not None:
        from pipelines.grid import check_place, write_png

        check_place(grid)
    dataset = open_dataset(directory)
    if grid is not None:
        inspect.check_drawable(dataset)
    found = inspect.inspect(dataset, progress=None)
    facts = found.to_json()
    if not as_json:
        click.echo(printable(found.to_text()))
    if grid is not None:
        rows = inspect.grid_rows(dataset, num or GRID_RECORDS, seed or 0)
        write_png(Path(grid), rows)
        facts["grid"] = grid
        if not as_json:
            click.echo(f"\n{counted(sum(map(len, rows)), 'record')} drawn in {grid}")
    if as_json:
        click.echo(json.dumps(facts))


@data.command(short_help="Check every checksum and every record.")
@click.argument("directory", metavar="DIR")
@_JSON
def verify(directory: str, as_json: bool) -> None:
    """Check every checksum and every record of the dataset DIR.

    Names each damaged file and prints the commands that make it again, and nothing else. Exit
    status: 0 whole, 1 damaged, 2 no dataset.

    Example: flowtrain data verify latents
    """
    from dataclasses import asdict

    from pipelines.curate.verify import verify as check

    report = check(directory, progress=None)
    if as_json:
        click.echo(json.dumps({**asdict(report), "whole": not report.damaged}))
    else:
        _tell_report(report)
    sys.exit(DAMAGED if report.damaged else 0)


def _tell_report(report: Any) -> None:
    from pipelines.dataset.card import counted

    if not report.damaged:
        content = (
            counted(report.files, "file"),
            counted(report.bytes, "byte"),
            counted(report.records, "record"),
        )
        click.echo(printable(f"{report.root} is whole: {', '.join(content)}"))
    else:
        click.echo(printable(f"{report.root} is damaged:"))
        for damage in report.damaged:
            click.echo(printable(f"  {damage.file}: {damage.problem}"))
        click.echo("To make only that again:")
        for command in report.commands:
            click.echo(printable(f"  {command}"))
        if report.note:
            click.echo(printable(f"({report.note})"))
    for name in report.foreign:
        click.echo(printable(f"not part of the dataset: {name}"))


@data.command(short_help="How two datasets differ: settings and records.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_JSON
def diff(first: str, second: str, as_json: bool) -> None:
    """Say which settings and which records of the datasets A and B differ.

    Records are matched by key, wherever they lie. Exit status: 0 the same, 1 different, 2 trouble.

    Example: flowtrain data diff latents-float32 latents-bfloat16
    """
    from pipelines.curate.diff import compare
    from pipelines.dataset.anywhere import open_dataset

    found = compare(open_dataset(first), open_dataset(second), progress=None)
    click.echo(json.dumps(found.to_json()) if as_json else printable(found.to_text()))
    sys.exit(0 if found.same else DIFFERENT)


@data.command(short_help="Join datasets into a new one.")
@click.argument("parts", metavar="DIR DIR...", nargs=-1, required=True)
@click.argument("out", metavar="OUT")
@click.option(
    "--split", default=None, help="Name of the split in OUT.  [default: that of the parts]"
)
@_JSON
def merge(parts: tuple[str, ...], out: str, split: str | None, as_json: bool) -> None:
    """Join the datasets DIR into a new one at OUT.

    They must agree in VAE, resolution, crop, tensors and mirrored split. Classes are united by
    name, or left alone if all have the same; keys must be unique. The same command again goes on
    where the last one stopped.

    Example: flowtrain data merge latents-a latents-b latents-ab
    """
    from pipelines.curate.merge import merge as join

    manifest = join(parts, out, split, progress=None)
    summary = {
        "out": out,
        "records": manifest.counts.written,
        "classes": len(manifest.classes),
        "shards": len(manifest.shards),
        "parts": len(manifest.parts or ()),
        "digest": manifest.digest(),
    }
    if as_json:
        click.echo(json.dumps(summary))
    else:
        for name, value in summary.items():
            click.echo(printable(f"{name:<8} {value}"))
