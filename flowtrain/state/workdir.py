"""The work directory of a run: who may write into it, and whether a repeated command means the same
run.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowtrain.devices.hosts import is_main
from schemas.config import BOOKKEEPING, ENDLESS_SCHEDULES, UNLEARNED, Recipe
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.recipes import format_recipe
from schemas.run import CHECKPOINTS_DIR, METRICS_NAME, RUN_NAME, Run, read_run, write_run

LOCK_NAME, RECIPE_NAME = ".lock", "recipe.toml"
# What may change between the commands of one run without changing what it computes: numbers, and
# whole tables.
FREE = frozenset(
    {*(f"train.{name}" for name in BOOKKEEPING), *(f"model.{name}" for name in UNLEARNED)}
)
FREE_TABLES = ("sampler.", "preview.")


@contextmanager
def claimed(workdir: Path, run: Run) -> Iterator[None]:
    """Hold the work directory for this run while in the context; it is made, or checked, and
    `run.json` written.

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
            f"{workdir}: cannot be made ({error.strerror}); give another --workdir"
        ) from None
    with open(workdir / LOCK_NAME, "w") as lock:
        try:
            # released by the system, also on SIGKILL
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another process is training here; wait for it or stop it"
            ) from None
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
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file; give a directory for --workdir")
    above = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(
            f"{workdir}: cannot be made ({above}: Not a directory); give another --workdir"
        )
    if not (workdir / RUN_NAME).exists():
        strangers = (
            [p.name for p in workdir.iterdir() if not _is_ours(p.name)] if workdir.is_dir() else []
        )
        if strangers:
            raise UserError(
                f"{workdir}: not empty ({sorted(strangers)[0]}) and no training run; give a new "
                "directory for --workdir"
            )
        return
    before = read_run(workdir)
    if before.dataset.digest != run.dataset.digest:
        raise UserError(
            f"{workdir}: was trained on another dataset ({_describe(before)}, now "
            f"{_describe(run)}); "
            "give a new directory for --workdir"
        )
    found = differences(before, run)
    if found and _has_learned(workdir):
        raise UserError(
            f"{workdir}: belongs to another recipe: {'; '.join(found)}; "
            "repeat the command as it was, or give a new directory for --workdir"
        )


def _is_ours(name: str) -> bool:
    return name == LOCK_NAME or (name.startswith(f".{RUN_NAME}.") and name.endswith(".tmp"))


def _has_learned(workdir: Path) -> bool:
    """Whether there is a checkpoint; one that is not whole has another name than its step."""
    folder = workdir / CHECKPOINTS_DIR
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _describe(run: Run) -> str:
    return f"{run.dataset.path}, {run.dataset.records} records, digest {run.dataset.digest[:8]}"


def differences(before: Run, now: Run) -> list[str]:
    """What two runs do not share of a recipe, of all that changes what is learned; one phrase for
    each key.
    """
    old, new = _flat(before.recipe), _flat(now.recipe)
    if (
        now.recipe.optimizer.schedule in ENDLESS_SCHEDULES
        and new["train.steps"] > old["train.steps"]
    ):
        # a longer run is the same run, unless its schedule depends on it
        del (
            old["train.steps"],
            new["train.steps"],
        )
    return [
        f"{name} was {old.get(name)} and is now {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE and not name.startswith(FREE_TABLES)
    ]


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Every value by `table.key`, those too that are left out of a file where they are at their
    default.
    """
    tables = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    return {
        f"{name}.{key}": getattr(table, key)
        for name, table in tables.items()
        for key in type(table).model_fields
    }
