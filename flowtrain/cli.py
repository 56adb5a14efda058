"""The `flowtrain` command; sub-commands are import strings, so `--help` is fast."""

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

import click

from flowtrain.devices.compilation import use_compilation_cache
from schemas.errors import UserError
from schemas.text import printable

# name: (module, attribute, one line for --help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "preprocess": ("pipelines.cli", "preprocess", "Encode images into a latent dataset."),
    "data": (
        "pipelines.data_cli",
        "data",
        "Look at datasets, check them, compare them, join them.",
    ),
    "train": ("flowtrain.train_cli", "train", "Train a flow-matching DiT on a latent dataset."),
    "sample": ("evaluation.cli", "sample", "Draw samples: a PNG grid, an ADM .npz or a dataset."),
    "eval": (
        "evaluation.cli",
        "eval_command",
        "Sample, decode, and measure distances to a reference.",
    ),
    "stats": ("evaluation.cli", "stats", "Compute reference feature statistics of images."),
    "report": ("evaluation.cli", "report", "Write one self-contained HTML page about a run."),
    "quickstart": (
        "flowtrain.quickstart",
        "quickstart",
        "Everything above, small and offline, on real digits.",
    ),
}

# What the disk or its permissions say no to; any other OSError is a fault of ours and keeps its
# traceback.
_STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
}
_STORAGE |= {errno.EISDIR, errno.ENAMETOOLONG}


_TYPED = "flowtrain.typed"  # of a context: all that was typed


class LazyGroup(click.Group):
    """Imports a command's module when it runs; a `UserError` becomes a line and status 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_typed(ctx.meta[_TYPED])
            use_compilation_cache()
            with _interrupt_ends_the_process():
                return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            command = ctx.command_path if error.ctx is None else error.ctx.command_path
            _refuse(f"{error.format_message().rstrip('.')}; see `{command} --help`")
        except UserError as error:
            _refuse(str(error))
        except OSError as error:
            if error.errno not in _STORAGE:
                raise
            _refuse(
                f"{error.filename or 'storage'}: {error.strerror}; mend it and repeat the command"
            )


def _check_typed(arguments: Iterable[str]) -> None:
    """Refuse what no argument of any command is.

    Raises:
        UserError: an empty one, or one with a line break or a NUL, which no path has.
    """
    for before, argument in pairwise(("flowtrain", *arguments)):
        if not argument.strip():
            raise UserError(
                f"the argument after {before} is empty; give a value (is a variable of the shell "
                "unset?)"
            )
        if any(character in argument for character in "\0\r\n"):
            raise UserError(
                f"the argument after {before} is {argument[:60]!r}; give each value a line, and "
                "no NUL"
            )


@contextmanager
def _interrupt_ends_the_process() -> Iterator[None]:
    """Ctrl-C stops at once and says how to go on: of all commands but `train`, which saves first,
    every moment is safe to stop at. An exception would have to find its way through Beam's threads
    and JAX's, which print traces of it or die of it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"\nInterrupted; repeat the command to go on.\n")
        with suppress(Exception):  # results printed so far
            sys.stdout.flush()
        os._exit(128 + number)

    # A shell lets jobs in the background ignore it.
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse(message: str) -> NoReturn:
    click.echo(printable(f"Error: {' '.join(message.split())}"), err=True)
    sys.exit(2)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flowtrain")
def main() -> None:
    """Flow-matching training on latents: encode images once, train a DiT, measure it."""


if __name__ == "__main__":
    main()
