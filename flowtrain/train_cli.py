"""`flowtrain train`."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowtrain import elsewhere
from flowtrain.option_types import READ, WRITTEN
from flowtrain.train_request import TrainRequest, check_request
from schemas.bars import bar, bytes_bar
from schemas.errors import UserError
from schemas.storage.url import is_url
from schemas.text import aligned, printable

if TYPE_CHECKING:
    from flowtrain.plan import Plan
    from flowtrain.records.cache import Cache
    from flowtrain.sinks import Sink
    from flowtrain.train import Options
    from schemas.config import Recipe

PREEMPTED = 75  # EX_TEMPFAIL: saved; repeat the command to go on
INTERRUPTED = 130
CACHES = ("none", "disk", "ram")
_POSITIVE = click.IntRange(min=1)


@click.command()
@click.argument("data")
@click.option(
    "--workdir", required=True, type=WRITTEN, help="Checkpoints, metrics and run.json go here."
)
@click.option("--recipe", required=True, help="Name of a recipe of the package, or a TOML file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override one value of the recipe.",
)
@click.option(
    "--overfit", type=_POSITIVE, metavar="N", help="Train on N records only: can it learn them?"
)
@click.option(
    "--validation",
    metavar="DATA",
    help="Dataset for the validation loss.  [default: held-out records]",
)
@click.option("--reference", type=READ, help="Statistics or dataset for the distances of previews.")
@click.option(
    "--cache",
    type=click.Choice(CACHES),
    default="none",
    show_default=True,
    help="Stage the records once, for speed.",
)
@click.option(
    "--cache-dir", type=WRITTEN, help="Where to stage.  [default: the user's cache folder]"
)
@click.option(
    "--fsdp",
    type=_POSITIVE,
    default=1,
    show_default=True,
    help="Cut parameters over so many devices.",
)
@click.option(
    "--distributed",
    is_flag=True,
    help="Join the other processes of a cluster, as its environment says.",
)
@click.option(
    "--coordinator", metavar="HOST:PORT", help="Process 0, where the environment does not say."
)
@click.option("--processes", type=_POSITIVE, help="How many there are.")
@click.option("--process", type=click.IntRange(min=0), help="Number of this one, from 0.")
@click.option(
    "--wandb",
    metavar="PROJECT",
    help="Report to Weights & Biases too (pip install flowtrain[wandb]).",
)
@click.option(
    "--replay", type=_POSITIVE, metavar="STEP", help="Print the records that made a step, and stop."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and plan, and stop.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the plan, the records or the result as JSON."
)
def train(**typed: Any) -> None:
    """Train a DiT on the latent dataset DATA (local, gs:// or s3://). The same command again
    resumes.

    On SIGTERM the state is saved and the exit status is 75; on Ctrl-C likewise, with 130.

    \b
    Example:
      flowtrain train latents/ --workdir run/ --recipe digits --set train.steps=500
    """
    from flowtrain.recipes import find_recipe
    from schemas.recipes import load_recipe

    request = TrainRequest(**typed)
    resolved = load_recipe(find_recipe(request.recipe), request.all_overrides)
    check_request(request, resolved)
    if request.joins:
        from flowtrain.devices.hosts import join

        join(request.coordinator, request.processes, request.process)

    from flowtrain.state import workdir as work

    plan = _plan(request, resolved)
    _check_devices(plan, request.fsdp)
    if plan.advice is not None:
        _warn(plan.advice)
    if request.replay:
        work.check(request.workdir, plan.run)
        _print_replay(plan, request.workdir, request.replay, request.as_json)
    elif request.dry_run:
        work.check(request.workdir, plan.run)
        _check_named(plan, request)
        _print_plan(plan, resolved, request.as_json)
    else:
        _train(plan, request)


def _print_plan(plan: "Plan", recipe: "Recipe", as_json: bool) -> None:
    from schemas.recipes import format_recipe, recipe_tables

    if as_json:
        _print({"recipe": recipe_tables(recipe), "plan": plan.summary()}, as_json)
        return
    click.echo(format_recipe(recipe))
    _print({"plan": plan.summary()}, as_json)


def _train(plan: "Plan", request: TrainRequest) -> None:
    from flowtrain.state import workdir as work
    from flowtrain.train import train as run_training
    from schemas.recipes import format_recipe

    workdir = request.workdir
    work.check(workdir, plan.run)  # before records are staged
    click.echo(format_recipe(plan.recipe), err=True)
    settings = _options(plan, request)
    plan = _staged(plan, request.cache, request.cache_dir)
    stop = _StopRequest()  # from here on there is something to save
    settings = replace(settings, should_stop=lambda: stop.signal is not None)
    outcome = run_training(plan, workdir, settings)
    if outcome.stopped:
        click.echo(
            f"{workdir}: stopped; saved step {outcome.step}, repeat the command to go on", err=True
        )
        sys.exit(INTERRUPTED if stop.signal == signal.SIGINT else PREEMPTED)
    _print({"workdir": str(workdir), "step": outcome.step}, request.as_json)


def _plan(request: TrainRequest, recipe: "Recipe") -> "Plan":
    """The plan of a run on the dataset, which is brought here first, unless the plan is all that is
    wanted.
    """
    from flowtrain.plan import make_plan, plan_for
    from flowtrain.records.reader import ManifestOnly

    data = request.data
    if request.dry_run and not request.replay and is_url(data):
        stored = elsewhere.open_remote_dataset(data)
        return plan_for(ManifestOnly(stored.root, stored.manifest), stored.root, recipe)
    return make_plan(_local(data, request.cache_dir), recipe)


def _check_named(plan: "Plan", request: TrainRequest) -> None:
    """With --dry-run: what else is named is there; it is neither staged nor measured."""
    from flowtrain.plan import check_validation
    from schemas.manifest import read_manifest

    data, preview = request.validation, plan.recipe.preview
    if data is not None and is_url(data):
        check_validation(plan, elsewhere.open_remote_dataset(data).manifest, Path(data))
    elif data is not None:
        check_validation(plan, read_manifest(Path(data)), Path(data))
    if request.reference is not None and not request.reference.exists():
        raise UserError(
            f"{request.reference}: no such reference; make one with `flowtrain stats SOURCE "
            f"{request.reference}`"
        )
    if preview.every and preview.distance_samples:
        elsewhere.check_protocol(preview.protocol)


def _check_devices(plan: "Plan", fsdp: int) -> None:
    """Before hours of staging: whether the batch can be cut over the devices."""
    from flowtrain.devices.sharding import check_batch, make_mesh

    train = plan.recipe.train
    check_batch(make_mesh(fsdp=fsdp), train.batch_size, train.accumulate)


def _options(plan: "Plan", request: TrainRequest) -> "Options":
    """How the run is carried out, with what other packages bring to it."""
    from flowtrain.plan import check_validation
    from flowtrain.records.reader import LatentReader
    from flowtrain.train import Options

    validate_on = None
    if request.validation is not None:
        validate_on = LatentReader(_local(request.validation, request.cache_dir))
        check_validation(plan, validate_on.manifest, validate_on.directory)
    preview = None
    if plan.recipe.preview.every:
        make_preview = elsewhere.preview_maker()
        data, directory = Path(plan.run.dataset.path), request.workdir / "previews"
        preview = make_preview(
            plan.run, data, request.reference, _warn, directory=directory, make_bar=bar
        )
    return Options(
        fsdp=request.fsdp, preview=preview, sinks=_sinks(plan, request), validate_on=validate_on
    )


def _sinks(plan: "Plan", request: TrainRequest) -> list[Callable[[], "Sink"]]:
    """Makers of where metrics go besides the work directory."""
    project, workdir = request.wandb, request.workdir
    if not project:
        return []
    from flowtrain.sinks import WandbSink
    from schemas.recipes import recipe_tables

    return [lambda: WandbSink(project, workdir, recipe_tables(plan.recipe))]


def _local(data: str, cache_dir: Path | None) -> Path:
    """The dataset on a local disk: training reads single records at random, so one in an object
    store is staged.
    """
    if not is_url(data):
        return Path(data)
    from flowtrain.records.cache import cache_directory

    size = elsewhere.staged_bytes(data)
    with bytes_bar(size, "stage") as progress:
        return elsewhere.stage(data, cache_directory(cache_dir), progress.update)


def _staged(plan: "Plan", cache: "Cache", cache_dir: Path | None) -> "Plan":
    """The plan with its records where they are fastest."""
    if cache == "none":
        return plan
    from flowtrain.records.cache import open_records
    from flowtrain.records.rows import row_count

    with bar(total=row_count(plan.reader.manifest), desc="cache", unit="record") as progress:
        return replace(
            plan, reader=open_records(plan.reader.directory, cache, cache_dir, progress.update)
        )


def _print_replay(plan: "Plan", workdir: Path, step: int, as_json: bool) -> None:
    from flowtrain.replay import replay

    records = list(replay(plan, workdir, step))
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
        return
    header = list(records[0])
    cells = [[_cell(record[name]) for name in header] for record in records]
    click.echo(printable("\n".join(aligned([header, *cells]))))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


class _StopRequest:
    """Remembers the first SIGTERM or SIGINT; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {
            which: signal.signal(which, self._note) for which in (signal.SIGTERM, signal.SIGINT)
        }

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        for which, handler in self._before.items():
            signal.signal(which, handler)


def _warn(message: str) -> None:
    click.echo(printable(f"Warning: {message}"), err=True)


def _print(content: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(content))
        return
    for name, value in content.items():
        if isinstance(value, dict):
            click.echo(f"[{name}]")
            _print(value, as_json)
        else:
            click.echo(printable(f"  {name} = {value}"))
