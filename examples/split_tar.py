"""Split a tar of images in two: every n-th by name into the second, the others into the first.

    python examples/split_tar.py cifar10_train.tar cifar10_kept.tar cifar10_held_out.tar --every 10

The names are sorted first, so that class folders of equal size give up the same share each, and the
same split comes out wherever it is made. The members keep their names and their bytes.
"""

import tarfile
from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("kept", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("held_out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--every",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Hold out the n-th of every n.",
)
def main(source: Path, kept: Path, held_out: Path, every: int) -> None:
    """Write KEPT and HELD_OUT from the tar SOURCE. Files that are there are not replaced."""
    for target in (kept, held_out):
        if target.exists():
            raise click.UsageError(f"{target} is there already; delete it, or give another name")
    if kept.resolve() == held_out.resolve():
        raise click.UsageError("KEPT and HELD_OUT are one file; give two")
    try:
        counts = split_tar(source, kept, held_out, every)
    except (tarfile.TarError, OSError) as error:
        raise click.ClickException(
            f"{source}: cannot be split ({error}); nothing was written"
        ) from None
    print(f"{kept}: {counts[0]} images; {held_out}: {counts[1]} images")


def split_tar(source: Path, kept: Path, held_out: Path, every: int) -> tuple[int, int]:
    """Copy the files of a tar into two; returns how many went into each.

    Args:
        source: any tar that `tarfile` reads.
        kept: for all but every n-th member, by name.
        held_out: for members n - 1, 2n - 1, ... of the sorted names.
        every: n, at least 2.

    Raises:
        tarfile.TarError, OSError: the source is no whole tar, or there is no room; nothing is
        written then.
    """
    drafts = [path.with_name(f".{path.name}.draft") for path in (kept, held_out)]
    try:
        with (
            tarfile.open(source) as members,
            tarfile.open(drafts[0], "w") as first,
            tarfile.open(drafts[1], "w") as second,
        ):
            files = sorted(
                (member for member in members if member.isfile()), key=lambda member: member.name
            )
            for number, member in enumerate(files):
                target = second if number % every == every - 1 else first
                target.addfile(member, members.extractfile(member))
        for draft, path in zip(drafts, (kept, held_out), strict=True):
            draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    count = len(files) // every
    return len(files) - count, count


if __name__ == "__main__":
    main()
