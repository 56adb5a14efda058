"""The work directory: who may write into it, and whether a command means the same run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowtrain.devices.hosts import is_main
from schemas.config import BOOKKEEPING, ENDLESS_SCHEDULES, UNLEARNED, Recipe
from schemas.errors import UserError, reason_of
from schemas.files import write_atomic
from schemas.locked import Lock, ask_for_lock
from schemas.recipes import format_recipe
from schemas.run import CHECKPOINTS_DIR, METRICS_NAME, RUN_NAME, Run, read_run, write_run
from schemas.text import differing

LOCK_NAME, RECIPE_NAME = ".lock", "recipe.toml"
# What may change between the commands of one run without changing what it computes: numbers, and
# whole tables.
FREE = frozenset(
    {*(f"train.{name}" for name in BOOKKEEPING), *(f"model.{name}" for name in UNLEARNED)}
)
FREE_TABLES = ("sampler.", "preview.")


@contextmanager
def claimed(workdir: Path, run: Run) -> Iterator[None]:
    """Hold the work directory for this run in the context: made or checked, with `run.json`.

    Of several processes the main one does that, and the others rely on it.

    Raises:
        UserError: the directory is another run's, holds something else, or another process is
            training in it.
    """
    if not is_main():
        yield
        return
    check(workdir, run)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot be made ({reason_of(error)}); give another --workdir"
        ) from None
    with open(workdir / LOCK_NAME, "w") as lock:
        # released by the system, also on SIGKILL
        if ask_for_lock(lock.fileno(), workdir / LOCK_NAME) is Lock.BUSY:
            raise UserError(f"{workdir}: another process is training here; wait for it or stop it")
        check(workdir, run)
        for name in (RUN_NAME, RECIPE_NAME, METRICS_NAME):  # left by a killed process
            for left in workdir.glob(f".{name}.*.tmp"):
                left.unlink()
        if _has_learned(workdir):
            # those that began the run
            run = run.model_copy(update={"versions": read_run(workdir).versions})
        write_run(workdir, run)
        write_atomic(workdir / RECIPE_NAME, format_recipe(run.recipe))
        yield


def check(workdir: Path, run: Run) -> None:
    """Whether `run` may begin or go on in `workdir`. Writes nothing.

    Before the first checkpoint nothing was learned, and the run begins anew, with another recipe if
    that is wanted.

    Raises:
        UserError: it may not; the difference is named.
    """
    _check_place(workdir)
    if not (workdir / RUN_NAME).exists():
        _check_empty(workdir)
        return
    before = read_run(workdir)
    if before.dataset.digest != run.dataset.digest:
        raise UserError(
            f"{workdir}: was trained on another dataset ({_describe(before)}, now "
            f"{_describe(run)}); "
            "give a new directory for --workdir"
        )
    changes = differences(before, run)
    if changes and _has_learned(workdir):
        raise UserError(
            f"{workdir}: belongs to another recipe: {'; '.join(changes)}; "
            "repeat the command as it was, or give a new directory for --workdir"
        )


def _check_place(workdir: Path) -> None:
    """Whether `workdir` is a directory or can be made one."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file; give a directory for --workdir")
    above = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(
            f"{workdir}: cannot be made ({above}: Not a directory); give another --workdir"
        )


def _check_empty(workdir: Path) -> None:
    """Whether a directory without a run holds nothing else, if it is there at all."""
    if not workdir.is_dir():
        return
    foreign = [path.name for path in workdir.iterdir() if not _is_from_claim(path.name)]
    if foreign:
        raise UserError(
            f"{workdir}: not empty ({sorted(foreign)[0]}) and no training run; give a new "
            "directory for --workdir"
        )


def _is_from_claim(name: str) -> bool:
    """Whether a claim that was killed before it wrote `run.json` leaves a file of this name."""
    return name == LOCK_NAME or (name.startswith(f".{RUN_NAME}.") and name.endswith(".tmp"))


def _has_learned(workdir: Path) -> bool:
    """Whether there is a checkpoint; one that is not whole has another name than its step."""
    folder = workdir / CHECKPOINTS_DIR
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _describe(run: Run) -> str:
    return f"{run.dataset.path}, {run.dataset.records} records, digest {run.dataset.digest[:8]}"


def differences(before: Run, now: Run) -> list[str]:
    """A phrase for each key of the recipe that two runs differ in and that changes the result."""
    changed = differing(_tables(before.recipe), _tables(now.recipe))
    steps, more_steps = changed.get("train.steps", (0, 0))
    if more_steps > steps and now.recipe.optimizer.schedule in ENDLESS_SCHEDULES:
        # a longer run is the same run, unless its schedule depends on the length
        del changed["train.steps"]
    return [
        f"{name} was {old} and is now {new}"
        for name, (old, new) in sorted(changed.items())
        if name not in FREE and not name.startswith(FREE_TABLES)
    ]


def _tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Every value by table and key, defaults too."""
    return {name: dict(table) for name, table in recipe}
