"""The commands `sample`, `eval`, `stats` and `report`. Heavy imports wait until a command runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from evaluation.options import SWEPT, settings_of, swept
from flowtrain.bars import bar
from schemas.config import SOLVERS
from schemas.run import Run, read_run

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)
_SEED = click.IntRange(min=0, max=2**32 - 1)  # JAX keys are made of 32 bits
_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_F = TypeVar("_F", bound=Callable[..., Any])


class _List(click.ParamType):
    """Numbers separated by commas, without repetitions, or `count` of them."""

    def __init__(self, kind: type[int] | type[float], least: float, count: int | None = None):
        self.kind, self.least, self.count = kind, least, count
        self.name = "n,n,..." if count is None else ",".join("n" * count)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int] | list[float]:
        if not isinstance(value, str):
            return value
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas, as in 100,20,5,1", param, ctx)
        if not all(self.least <= number < float("inf") for number in numbers):
            self.fail(f"{value!r}: each must be at least {self.least:g}", param, ctx)
        if self.count is not None:
            if len(numbers) != self.count:
                self.fail(f"{value!r}: give {self.count} numbers", param, ctx)
            return numbers
        return list(dict.fromkeys(numbers))


class _Names(click.ParamType):
    """Names separated by commas."""

    name = "name,name,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(dict.fromkeys(name.strip() for name in value.split(",")))


def _weights_options(command: _F) -> _F:
    """Where the weights of an extractor are."""
    path = (
        "A file, or a folder that holds it.  [default: cache, installed package, then the public "
        "release]"
    )
    digest = "Of other weights: of the file, or of Inception's tensors."
    for option in (
        click.option(
            "--extractor-sha256", metavar="HEX", help=f"{digest}  [default: as published]"
        ),
        click.option("--extractor-weights", type=_PATH, help=path),
    ):
        command = option(command)
    return command


def _sampling_options(command: _F) -> _F:
    """Options that `sample` and `eval` share."""
    solvers = click.Choice(
        list(dict.fromkeys(name for names in SOLVERS.values() for name in names))
    )
    labels = (
        "cyclic (sample i has class i modulo classes), uniform, or statistics (.npz) whose class "
        "counts to follow."
    )
    weights = "ema, or params (not averaged), or another average: ema0.999, power0.05, posthoc0.13."
    for option in (
        click.option(
            "--batch-size", type=_POSITIVE, default=256, show_default=True, help="Samples at once."
        ),
        click.option("--weights", metavar="NAME", default="ema", show_default=True, help=weights),
        click.option(
            "--step", type=click.IntRange(min=0), help="Checkpoint step.  [default: newest]"
        ),
        click.option("--seed", type=_SEED, default=0, show_default=True),
        click.option("--labels", metavar="RULE", default="cyclic", show_default=True, help=labels),
        click.option(
            "--class", "class_name", metavar="NAME", help="Only this class.  [default: by --labels]"
        ),
        click.option(
            "--tolerance", type=_ABOVE_0, help="Of dopri5, relative and absolute.  [default: 1e-5]"
        ),
        click.option(
            "--shift", type=_ABOVE_0, help="Of the time steps, towards noise.  [default: recipe]"
        ),
        click.option(
            "--cfg-interval",
            type=_List(float, 0, 2),
            help="Guidance between two times only, as in 0.1,0.8.",
        ),
        click.option(
            "--cfg-channels",
            type=_POSITIVE,
            help="Guide only the first channels.  [default: recipe]",
        ),
        click.option(
            "--solver", type=solvers, help="One that goes with the objective.  [default: recipe]"
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("workdir", type=_PATH)
@click.argument("out", type=_PATH)
@click.option(
    "--num", type=_POSITIVE, help="Number of samples.  [default: 10 a class, at most 200]"
)
@click.option("--steps", type=_POSITIVE, help="Sampling steps.  [default: recipe]")
@click.option(
    "--cfg", type=click.FloatRange(min=0), help="Guidance weight; 1 is none.  [default: recipe]"
)
@_sampling_options
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def sample(workdir: Path, out: Path, dry_run: bool, **options: Any) -> None:
    """Draw samples from the run in WORKDIR.

    OUT ending in .png is a grid, one row a class (of more than 20 classes, in the order drawn); in
    .npz, a batch in ADM's layout (arr_0 images, arr_1 labels); anything else is a directory for a
    dataset of latents, which a killed command goes on with when repeated.

    \b
    Example:
      flowtrain sample runs/digits grid.png --steps 20 --cfg 4
    """
    from evaluation.draw import sample

    run = read_run(workdir)
    (setting,) = settings_of(
        run, {**options, "steps": [options["steps"]], "cfg": [options["cfg"]]}, options["num"]
    )
    request = sample.Request(
        workdir, out, setting, options["step"], options["weights"], options["batch_size"]
    )
    if dry_run:
        _echo_plan(sample.plan(request, run))
        return
    sample.draw_to(request, bar)
    click.echo(f"{setting.num} samples in {out}")


@click.command(name="eval")
@click.argument("workdir", type=_PATH)
@click.option("--reference", type=_PATH, required=True, help="Statistics (.npz) or a dataset.")
@click.option(
    "--steps", type=_List(int, 1), help="Sampling steps, as in 100,20,5,1.  [default: recipe]"
)
@click.option("--cfg", type=_List(float, 0), help="Guidance weights, as in 1,4.  [default: recipe]")
@click.option(
    "--num-samples",
    type=click.IntRange(min=2),
    help="Samples a setting.  [default: 1000; images: all]",
)
@click.option(
    "--protocol", default="embedded", show_default=True, help="How features are measured."
)
@click.option(
    "--metrics",
    type=_Names(),
    default=(),
    help="sfid,is,pr,dc,kid,uncertainty or all.  [default: those that cost nothing]",
)
@click.option(
    "--neighbours", type=_POSITIVE, help="Show the nearest training images of so many samples."
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="KEY=V,V",
    help=f"Every value of {', '.join(SWEPT)}; repeat.",
)
@_weights_options
@_sampling_options
@click.option(
    "--resolution", type=_POSITIVE, help="For a folder of images.  [default: the reference's]"
)
@click.option(
    "--crop",
    type=click.Choice(["adm", "none"]),
    default="adm",
    show_default=True,
    help="For a folder.",
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object a result.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def eval_command(
    workdir: Path, as_json: bool, dry_run: bool, beam_args: tuple[str, ...], **options: Any
) -> None:
    """Measure the distance of samples of WORKDIR to a reference, for every pair of --steps and
    --cfg.

    Each setting is generated into WORKDIR/samples, decoded and measured; results are appended to
    WORKDIR/results.jsonl and never computed twice. WORKDIR may also be statistics (.npz), an ADM
    batch (.npz), a dataset or a folder of images, which are then only compared. Beam options go
    after --.

    \b
    Examples:
      flowtrain eval runs/digits --reference digits.npz --steps 100,20,5,1 --cfg 1,4
      flowtrain eval runs/digits --reference digits.npz --sweep weights=ema,params --sweep seed=0,1
    """
    from evaluation.features.measure import MeasureOptions
    from evaluation.protocols import find_protocol
    from evaluation.report.tables import markdown
    from evaluation.score.compare import Comparison, check_exists, compare_only, is_run

    weights = _weights(options)
    if is_run(workdir):
        run = read_run(workdir)
        results = _eval_run(
            workdir, run, dry_run, MeasureOptions(beam_args, weights=weights), options
        )
        text = markdown(results, run, workdir.name) if results else ""
    elif dry_run:
        check_exists(options["reference"])
        _echo_plan(
            {"compare": workdir, "with": options["reference"], "protocol": options["protocol"]}
        )
        return
    else:
        recipe = find_protocol(options["protocol"])
        names = ("reference", "resolution", "crop", "metrics")
        comparison = Comparison(
            workdir,
            recipe=recipe,
            num=options["num_samples"],
            **{name: options[name] for name in names},
        )
        results = [compare_only(comparison, MeasureOptions(beam_args, bar, weights), _warn)]
        text = markdown(results)
    if results:
        click.echo(text)
    if as_json:
        for result in results:
            click.echo(json.dumps(result.to_json()))


def _eval_run(
    workdir: Path, run: Run, dry_run: bool, measuring: Any, options: dict[str, Any]
) -> list[Any]:
    from evaluation import evaluate
    from evaluation.protocols import find_protocol
    from evaluation.report.step_order import worse_with_more_steps

    requests = [
        evaluate.Request(
            workdir=workdir,
            reference=options["reference"],
            recipe=find_protocol(chosen["protocol"]),
            settings=tuple(settings_of(run, chosen, chosen["num_samples"] or 1000)),
            step=chosen["step"],
            weights=chosen["weights"],
            batch_size=options["batch_size"],
            metrics=options["metrics"],
            neighbours=options["neighbours"] or 0,
            measuring=measuring,
        )
        for chosen in swept(options, options["sweeps"])
    ]
    if dry_run:
        _echo_plan(evaluate.plan(requests, run))
        return []
    results = evaluate.evaluate(requests, _warn, bar)
    advice = worse_with_more_steps(results, run.recipe.objective)
    if advice is not None:
        _warn(advice)
    return results


@click.command()
@click.argument("source")
@click.argument("out", type=_PATH)
@click.option("--split", help="Split to measure.  [default: train; of a dataset, its main split]")
@click.option("--resolution", type=_POSITIVE, help="Side in pixels; needed for a source of images.")
@click.option("--crop", type=click.Choice(["adm", "none"]), default="adm", show_default=True)
@click.option("--extractor", "--protocol", "protocol", default="embedded", show_default=True)
@click.option(
    "--num",
    type=click.IntRange(min=2),
    help="So many images, evenly spaced by name.  [default: all]",
)
@click.option(
    "--features",
    is_flag=True,
    help="Keep every feature row too, for precision, recall, KID and others.",
)
@_weights_options
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def stats(
    source: str, out: Path, as_json: bool, dry_run: bool, beam_args: tuple[str, ...], **options: Any
) -> None:
    """Measure the feature statistics of SOURCE into OUT (.npz), for `eval --reference`.

    SOURCE is a folder of images, embedded:NAME, or a dataset (latents are decoded first). OUT holds
    mu and sigma under the names that other evaluators read, and the sums they come from; statistics
    that are there are measured again and replaced. Beam options go after --.

    \b
    Example:
      flowtrain stats embedded:digits digits.npz --split train --resolution 32
    """
    from evaluation.features import measure
    from evaluation.protocols import find_protocol
    from evaluation.score.compare import warn_of_rank

    recipe = find_protocol(options["protocol"])
    measure.check_out(out)
    images = measure.named_images(
        source, options["split"], options["resolution"], options["crop"], options["num"]
    )
    if dry_run:
        facts = {"images": images.size, "resolution": images.resolution, **images.facts()}
        _echo_plan({**facts, "protocol": recipe.name, "out": str(out)})
        return
    weights = _weights(options)
    protocol = measure.protocol_of(recipe, images.resolution, weights)
    warn_of_rank(images.size, protocol.dim, "images", _warn)
    measuring = measure.MeasureOptions(beam_args, bar, weights, options["features"])
    facts = measure.summary(
        measure.measure_images(images, protocol, out, measuring).statistics, out
    )
    click.echo(measure.describe(facts))
    if as_json:
        click.echo(json.dumps(facts))


@click.command()
@click.argument("workdirs", type=_PATH, nargs=-1, required=True, metavar="WORKDIR...")
@click.option(
    "--out",
    type=_PATH,
    help="The page.  [default: WORKDIR/report.html; of several, report-comparison.html]",
)
@click.option("--dry-run", is_flag=True, help="Print what the page would show and stop.")
def report(workdirs: tuple[Path, ...], out: Path | None, dry_run: bool) -> None:
    """Write one self-contained HTML page about the run in WORKDIR: curves, samples, distances,
    recipe, data.

    Of several runs the page shows them side by side, and their tables are printed in Markdown.

    \b
    Examples:
      flowtrain report runs/digits --out digits.html
      flowtrain report runs/flow runs/diffusion
    """
    from evaluation.report import page as report_module
    from evaluation.report import side_by_side

    for workdir in workdirs:
        read_run(workdir)
    first, single = workdirs[0], len(workdirs) == 1
    out = out or first / ("report.html" if single else "report-comparison.html")
    if dry_run:
        _echo_plan(report_module.plan(first, out) if single else side_by_side.plan(workdirs, out))
        return
    if single:
        report_module.write_report(first, out, _warn)
    else:
        text = side_by_side.write_comparison(workdirs, out, _warn)
        if text:
            click.echo(f"{text}\n")
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def _weights(options: dict[str, Any]) -> Any:
    from evaluation.extractors import Weights

    path = options["extractor_weights"]
    return Weights(str(path.absolute()) if path else None, options["extractor_sha256"])


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


def _echo_plan(plan: dict[str, Any]) -> None:
    width = max(len(name) for name in plan)
    for name, value in plan.items():
        click.echo(f"{name:<{width}}  {value}")
