"""The commands `sample`, `eval`, `stats` and `report`. Heavy imports wait until a command runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowtrain.bars import bar
from schemas.config import SOLVERS, choose_solver
from schemas.errors import UserError
from schemas.run import Run, read_run

if TYPE_CHECKING:
    from evaluation.generate import Setting

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)
_SEED = click.IntRange(min=0, max=2**32 - 1)  # JAX keys are made of 32 bits
_F = TypeVar("_F", bound=Callable[..., Any])


class _List(click.ParamType):
    """Numbers separated by commas, without repetitions."""

    def __init__(self, kind: type[int] | type[float], least: float):
        self.kind, self.least = kind, least
        self.name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int] | list[float]:
        if not isinstance(value, str):
            return value
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas, as in 100,20,5,1", param, ctx)
        if not all(self.least <= number < float("inf") for number in numbers):
            self.fail(f"{value!r}: each must be at least {self.least:g}", param, ctx)
        return list(dict.fromkeys(numbers))


def _sampling_options(command: _F) -> _F:
    """Options that `sample` and `eval` share."""
    solvers = click.Choice(list(dict.fromkeys(name for names in SOLVERS.values() for name in names)))
    weights = "ema, or params (not averaged), or another average: ema0.999, power0.05, posthoc0.13."
    for option in (
        click.option("--batch-size", type=_POSITIVE, default=250, show_default=True, help="Samples at once."),
        click.option("--weights", metavar="NAME", default="ema", show_default=True, help=weights),
        click.option("--step", type=click.IntRange(min=0), help="Checkpoint step.  [default: newest]"),
        click.option("--seed", type=_SEED, default=0, show_default=True),
        click.option("--class", "class_name", metavar="NAME", help="Only this class.  [default: all in turn]"),
        click.option("--cfg-channels", type=_POSITIVE, help="Guide only the first channels.  [default: recipe]"),
        click.option("--solver", type=solvers, help="One that goes with the objective.  [default: recipe]"),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("workdir", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--num", type=_POSITIVE, help="Number of samples.  [default: 10 a class, at most 200]")
@click.option("--steps", type=_POSITIVE, help="Sampling steps.  [default: recipe]")
@click.option("--cfg", type=click.FloatRange(min=0), help="Guidance weight; 1 is none.  [default: recipe]")
@_sampling_options
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def sample(workdir: Path, out: Path, dry_run: bool, **options: Any) -> None:
    """Draw samples from the run in WORKDIR.

    OUT ending in .png is a grid, one row a class (of more than 20 classes, in the order drawn); in .npz, a batch in
    ADM's layout (arr_0 images, arr_1 labels); anything else is a directory for a dataset of latents, which a killed
    command goes on with when repeated.

    \b
    Example:
      flowtrain sample runs/digits grid.png --steps 20 --cfg 4
    """
    from evaluation import sample_command

    run = read_run(workdir)
    setting = _settings(run, [options["steps"] or run.recipe.sampler.steps], [options["cfg"]], options["num"], options)[
        0
    ]
    request = sample_command.Request(workdir, out, setting, options["step"], options["weights"], options["batch_size"])
    if dry_run:
        _echo_plan(sample_command.plan(request, run))
        return
    sample_command.draw_to(request, bar)
    click.echo(f"{setting.num} samples in {out}")


@click.command(name="eval")
@click.argument("workdir", type=_PATH)
@click.option("--reference", type=_PATH, required=True, help="Statistics (.npz) or a dataset.")
@click.option("--steps", type=_List(int, 1), help="Sampling steps, as in 100,20,5,1.  [default: recipe]")
@click.option("--cfg", type=_List(float, 0), help="Guidance weights, as in 1,4.  [default: recipe]")
@click.option("--num-samples", type=click.IntRange(min=2), help="Samples a setting.  [default: 1000; images: all]")
@click.option("--protocol", default="embedded", show_default=True, help="How features are measured.")
@_sampling_options
@click.option("--resolution", type=_POSITIVE, help="For a folder of images.  [default: the reference's]")
@click.option("--crop", type=click.Choice(["adm", "none"]), default="adm", show_default=True, help="For a folder.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object a result.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def eval_command(workdir: Path, as_json: bool, dry_run: bool, beam_args: tuple[str, ...], **options: Any) -> None:
    """Measure the distance of samples of WORKDIR to a reference, for every pair of --steps and --cfg.

    Each setting is generated into WORKDIR/samples, decoded and measured; results are appended to
    WORKDIR/results.jsonl and never computed twice. WORKDIR may also be statistics (.npz), an ADM batch (.npz), a
    dataset or a folder of images, which are then only compared. Beam options go after --.

    \b
    Example:
      flowtrain eval runs/digits --reference digits.npz --steps 100,20,5,1 --cfg 1,4
    """
    from evaluation import measure
    from evaluation.protocols import find_protocol
    from evaluation.tables import text_table

    recipe = find_protocol(options["protocol"])
    if measure.is_run(workdir):
        results = _eval_run(workdir, recipe, dry_run, beam_args, options)
    elif dry_run:
        measure.check_exists(options["reference"])
        _echo_plan({"compare": str(workdir), "with": str(options["reference"]), "protocol": recipe.name})
        return
    else:
        results = [
            measure.compare_only(
                workdir,
                options["reference"],
                recipe,
                num=options["num_samples"],
                resolution=options["resolution"],
                crop=options["crop"],
                beam_args=beam_args,
                notify=_warn,
                make_bar=bar,
            )
        ]
    if results:
        click.echo(text_table(results))
    if as_json:
        for result in results:
            click.echo(json.dumps(result.to_json()))


def _eval_run(
    workdir: Path, recipe: Any, dry_run: bool, beam_args: tuple[str, ...], options: dict[str, Any]
) -> list[Any]:
    from evaluation import evaluate

    run = read_run(workdir)
    steps = options["steps"] or [run.recipe.sampler.steps]
    settings = _settings(run, steps, options["cfg"] or [None], options["num_samples"] or 1000, options)
    request = evaluate.Request(
        workdir=workdir,
        reference=options["reference"],
        recipe=recipe,
        settings=tuple(settings),
        step=options["step"],
        weights=options["weights"],
        batch_size=options["batch_size"],
        beam_args=beam_args,
    )
    if dry_run:
        _echo_plan(evaluate.plan(request, run))
        return []
    return evaluate.evaluate(request, _warn, bar)


@click.command()
@click.argument("source")
@click.argument("out", type=_PATH)
@click.option("--split", help="Split to measure.  [default: train; of a dataset, its main split]")
@click.option("--resolution", type=_POSITIVE, help="Side in pixels; needed for a source of images.")
@click.option("--crop", type=click.Choice(["adm", "none"]), default="adm", show_default=True)
@click.option("--extractor", "--protocol", "protocol", default="embedded", show_default=True)
@click.option("--num", type=click.IntRange(min=2), help="Only the first images.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def stats(source: str, out: Path, as_json: bool, dry_run: bool, beam_args: tuple[str, ...], **options: Any) -> None:
    """Measure the feature statistics of SOURCE into OUT (.npz), for `eval --reference`.

    SOURCE is a folder of images, embedded:NAME, or a dataset (latents are decoded first). OUT holds mu and sigma
    under the names that other evaluators read, and the sums they come from; statistics that are there are measured
    again and replaced. Beam options go after --.

    \b
    Example:
      flowtrain stats embedded:digits digits.npz --split train --resolution 32
    """
    from evaluation import measure
    from evaluation.protocols import find_protocol

    recipe = find_protocol(options["protocol"])
    measure.check_out(out)
    images = measure.named_images(source, options["split"], options["resolution"], options["crop"], options["num"])
    if dry_run:
        facts = {"images": images.size, "resolution": images.resolution, **images.facts()}
        _echo_plan({**facts, "protocol": recipe.name, "out": str(out)})
        return
    protocol = measure.protocol_of(recipe, images.resolution)
    measure.warn_of_rank(images.size, protocol.dim, "images", _warn)
    statistics = measure.measure_images(images, protocol, out, beam_args, bar)
    facts = measure.summary(statistics, out)
    click.echo(measure.describe(facts))
    if as_json:
        click.echo(json.dumps(facts))


@click.command()
@click.argument("workdir", type=_PATH)
@click.option("--out", type=_PATH, help="The page.  [default: WORKDIR/report.html]")
@click.option("--dry-run", is_flag=True, help="Print what the page would show and stop.")
def report(workdir: Path, out: Path | None, dry_run: bool) -> None:
    """Write one self-contained HTML page about the run in WORKDIR: curves, samples, distances, recipe, data.

    \b
    Example:
      flowtrain report runs/digits --out digits.html
    """
    from evaluation import report as report_module

    read_run(workdir)
    out = out or workdir / "report.html"
    if dry_run:
        _echo_plan(report_module.plan(workdir, out))
        return
    report_module.write_report(workdir, out, _warn)
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def _settings(
    run: Run, steps: list[int], guidances: list[float | None], num: int | None, options: dict[str, Any]
) -> list["Setting"]:
    """Every pair of steps and guidance; what was left out comes from the recipe.

    Raises:
        UserError: the run cannot be sampled so.
    """
    from evaluation.generate import Setting

    defaults = run.recipe.sampler
    channels = options["cfg_channels"] or defaults.cfg_channels
    if channels is not None and channels > run.latent_shape[2]:
        raise UserError(f"--cfg-channels {channels}: the model has {run.latent_shape[2]} channels")
    if max(steps) > run.recipe.most_steps:
        raise UserError(f"--steps {max(steps)}: the run has only {run.recipe.most_steps} noise levels; take fewer")
    solver, label = choose_solver(run.recipe, options["solver"]), _label(options["class_name"], run.classes)
    return [
        Setting(
            num=num or 10 * (min(len(run.classes), 20) if label is None else 1),
            steps=count,
            cfg=defaults.cfg if cfg is None else cfg,
            cfg_channels=channels,
            label=label,
            seed=options["seed"],
            solver=solver,
        )
        for cfg in guidances
        for count in steps
    ]


def _label(name: str | None, classes: tuple[str, ...]) -> int | None:
    """A class's index from its name or, where no class has that name, its number."""
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    from evaluation.extractors import nearest

    known = dict.fromkeys(classes[:20])
    raise UserError(f"--class {name}: no such class{nearest(name, known)}")


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


def _echo_plan(plan: dict[str, Any]) -> None:
    width = max(len(name) for name in plan)
    for name, value in plan.items():
        click.echo(f"{name:<{width}}  {value}")
