"""Failures of machines in one line: full disks, full memories, damaged files."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from schemas.errors import UserError

_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}

_UNAWAITED_READ = "Encountered error while reading array index"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _full(error: BaseException) -> str | None:
    """The system's message, if there was no room; TensorStore tells it in words only."""
    for one in _chain(error):
        for code, words in _FULL.items():
            if (isinstance(one, OSError) and one.errno == code) or words.lower() in str(
                one
            ).lower():
                return words
    return None


def silence() -> None:
    """Silence orbax, which logs each phase of a save and a traceback a failed thread.

    Errors are raised all the same.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_not_a_full_disk)
    sys.unraisablehook = _unraisable


def _not_a_full_disk(record: logging.LogRecord) -> bool:
    """Not one of the errors of a failed save that nobody waits for, since another was first."""
    return not (record.exc_info and record.exc_info[1] and _full(record.exc_info[1]))


def _unraisable(what: Any, before: Callable[[Any], object] = sys.unraisablehook) -> None:
    """Drops what orbax, after a failure, does not await: TensorStore's writes, its own reads."""
    text = str(what.exc_value)
    if text != "Event loop is closed" and not text.startswith(_UNAWAITED_READ):
        before(what)


def check_room(directory: Path, arrays: Any, what: str, kept: str) -> None:
    """Whether a tree of arrays will fit on the disk: better told before than by half a file.

    Not asked where several processes write: they must all come to the same answer.

    Raises:
        UserError: it will not, as `storage_faults` says it.
    """
    # random numbers are compressed to 0.92
    needed = 0.9 * sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    usage = shutil.disk_usage(directory)
    # some network file systems tell of no bytes
    if jax.process_count() == 1 and usage.total and usage.free < needed:
        numbers = f"{needed / 1e6:,.1f} MB needed, {usage.free / 1e6:,.1f} MB free"
        raise UserError(f"{what} ({numbers}); {kept}; make room and repeat the command")


@contextmanager
def storage_faults(what: str, kept: str) -> Iterator[None]:
    """Full disks as a `UserError`: "`what` (No space ...); `kept`; make room ...".

    What failed is of no more use: leave it, and open it again.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = _full(error)
        if words is None:
            raise
        raise UserError(f"{what} ({words}); {kept}; make room and repeat the command") from error


@contextmanager
def memory_faults() -> Iterator[None]:
    """Turn an accelerator's, or the host's, lack of memory into a `UserError` that names the knobs.

    Raises:
        UserError: instead of JAX's RESOURCE_EXHAUSTED and Python's MemoryError.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        told = ("resource_exhausted", "out of memory")
        if not isinstance(error, MemoryError) and not any(
            words in str(error).lower() for words in told
        ):
            raise
        raise UserError(
            "out of memory: a step does not fit; compute the batch in parts (--set "
            "train.accumulate=2), keep fewer activations (--set model.remat=true), cut the state "
            "over devices (--fsdp N), or, before the first checkpoint or in a new directory, use "
            "bfloat16 (--set model.dtype=bfloat16) or a smaller train.batch_size"
        ) from error


@contextmanager
def damage_faults(what: str, remedy: str) -> Iterator[None]:
    """Turn what reading damaged files raises into a `UserError`: "`what` (...); `remedy`".

    Raises:
        UserError: instead of anything but a lack of memory; orbax raises bare exceptions, too.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        *_, first = _chain(error)
        reason = (str(first).splitlines() or [""])[0] or type(first).__name__
        raise UserError(f"{what} ({reason[:160]}); {remedy}") from error
