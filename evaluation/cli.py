"""The commands `sample`, `eval`, `stats` and `report`. Heavy imports wait until a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluation.option_types import (
    AT_LEAST_2,
    STEPS,
    Names,
    Numbers,
    alone,
    bad_fraction_option,
    extractor_options,
)
from evaluation.options import (
    SWEPT,
    EvalOptions,
    ExtractorOptions,
    SampleOptions,
    StatsOptions,
    drawing_options,
    settings_of,
)
from evaluation.sweeps import swept
from flowtrain.option_types import READ, WRITTEN
from pipelines.option_types import COUNT, SIDE, FiniteRange
from schemas.bars import bar
from schemas.errors import UserError
from schemas.solvers import MOST_STEPS
from schemas.text import aligned, printable

MOST_NEIGHBOURS = 64  # rows of a picture

if TYPE_CHECKING:
    from evaluation.evaluate import Request
    from evaluation.extractors import Weights
    from evaluation.results import Result
    from schemas.run import Run


@click.command()
@click.argument("workdir", type=READ)
@click.argument("out", type=WRITTEN)
@click.option("--num", type=COUNT, help="Number of samples.  [default: 10 a class, at most 200]")
@click.option("--steps", type=STEPS, callback=alone, help="Sampling steps.  [default: recipe]")
@click.option(
    "--cfg",
    type=FiniteRange(min=0),
    callback=alone,
    help="Guidance weight; 1 is none.  [default: recipe]",
)
@drawing_options
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def sample(**typed: Any) -> None:
    """Draw samples from the run in WORKDIR.

    OUT ending in .png is a grid, one row a class (of more than 20 classes, in the order drawn); in
    .npz, a batch in ADM's layout (arr_0 images, arr_1 labels); anything else is a directory for a
    dataset of latents, which a killed command goes on with when repeated.

    \b
    Example:
      flowtrain sample runs/digits grid.png --steps 20 --cfg 4
    """
    from evaluation.draw import sample
    from schemas.run import read_run

    options = SampleOptions(**typed)
    run = read_run(options.workdir)
    _check_weights(run, options)
    (setting,) = settings_of(run, options, options.num)
    request = sample.DrawRequest(
        options.workdir, options.out, setting, options.step, options.weights, options.batch_size
    )
    if options.dry_run:
        _echo_plan(sample.plan(request, run))
        return
    sample.draw_to(request, bar)
    click.echo(f"{setting.num} samples in {options.out}")


@click.command(name="eval")
@click.argument("workdir", type=WRITTEN)
@click.option("--reference", type=READ, required=True, help="Statistics (.npz) or a dataset.")
@click.option(
    "--steps",
    type=Numbers(int, 1, most=MOST_STEPS),
    default=(),
    help="Sampling steps, as in 100,20,5,1.  [default: recipe]",
)
@click.option(
    "--cfg",
    type=Numbers(float, 0),
    default=(),
    help="Guidance weights, as in 1,4.  [default: recipe]",
)
@click.option(
    "--num-samples",
    type=AT_LEAST_2,
    help="Samples a setting.  [default: 1000; images: all]",
)
@click.option(
    "--protocol", default="embedded", show_default=True, help="How features are measured."
)
@click.option(
    "--metrics",
    type=Names(),
    default=(),
    help="sfid,is,pr,dc,kid,uncertainty or all.  [default: those that cost nothing]",
)
@click.option(
    "--neighbours",
    type=click.IntRange(1, MOST_NEIGHBOURS),
    help="Show the nearest training images of so many samples.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="KEY=V,V",
    help=f"Every value of {', '.join(SWEPT)}; repeat.",
)
@extractor_options
@drawing_options
@bad_fraction_option
@click.option("--resolution", type=SIDE, help="For a folder of images.  [default: the reference's]")
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
def eval_command(**typed: Any) -> None:
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
    from evaluation.score.compare import is_run

    options = EvalOptions(**typed)
    results = _eval_run(options) if is_run(options.workdir) else _compare(options)
    if options.as_json:
        for result in results:
            click.echo(json.dumps(result.to_json()))


def _eval_run(options: EvalOptions) -> list["Result"]:
    """Results of a run's samples, told as a table; none, where only the plan was asked for."""
    from evaluation import evaluate
    from evaluation.report.step_order import worse_with_more_steps
    from evaluation.report.tables import markdown
    from schemas.run import read_run

    run = read_run(options.workdir)
    _check_beam(options.beam_args)
    requests = [_request(run, chosen) for chosen in swept(options)]
    if options.dry_run:
        _echo_plan(evaluate.plan(requests, run))
        return []
    results = evaluate.evaluate(requests, _warn, bar)
    advice = worse_with_more_steps(results, run.recipe.objective)
    if advice is not None:
        _warn(advice)
    click.echo(printable(markdown(results, run, options.workdir.name)))
    return results


def _request(run: "Run", options: EvalOptions) -> "Request":
    """What is measured with one checkpoint, average and protocol."""
    from evaluation.evaluate import Request
    from evaluation.features.measure import MeasureOptions
    from evaluation.protocols import find_protocol

    num, neighbours = options.num_samples or 1000, options.neighbours or 0
    if neighbours > num:
        raise UserError(f"--neighbours {neighbours}: of {num} samples; ask for no more")
    return Request(
        workdir=options.workdir,
        reference=options.reference,
        recipe=find_protocol(options.protocol),
        settings=tuple(settings_of(run, options, num)),
        step=options.step,
        weights=options.weights,
        batch_size=options.batch_size,
        metrics=options.metrics,
        neighbours=neighbours,
        measuring=MeasureOptions(
            options.beam_args,
            weights=_weights(options),
            max_bad_fraction=options.max_bad_fraction,
        ),
    )


def _compare(options: EvalOptions) -> list["Result"]:
    """The result of finished images, likewise."""
    from evaluation.features.measure import MeasureOptions
    from evaluation.protocols import find_protocol
    from evaluation.report.tables import markdown
    from evaluation.score.compare import Comparison, check_named, check_subject, compare_only

    weights = _weights(options)
    _check_beam(options.beam_args)
    if options.dry_run:
        check_named(options.reference, find_protocol(options.protocol), options.metrics)
        check_subject(options.workdir)
        facts = {"compare": options.workdir, "with": options.reference}
        _echo_plan({**facts, "protocol": options.protocol})
        return []
    comparison = Comparison(
        options.workdir,
        options.reference,
        find_protocol(options.protocol),
        options.num_samples,
        options.resolution,
        options.crop,
        options.metrics,
    )
    measuring = MeasureOptions(
        options.beam_args, bar, weights, max_bad_fraction=options.max_bad_fraction
    )
    results = [compare_only(comparison, measuring, _warn)]
    click.echo(printable(markdown(results)))
    return results


@click.command()
@click.argument("source")
@click.argument("out", type=WRITTEN)
@click.option("--split", help="Split to measure.  [default: train; of a dataset, its main split]")
@click.option("--resolution", type=SIDE, help="Side in pixels; needed for a source of images.")
@click.option("--crop", type=click.Choice(["adm", "none"]), default="adm", show_default=True)
@click.option("--extractor", "--protocol", "protocol", default="embedded", show_default=True)
@click.option(
    "--num",
    type=AT_LEAST_2,
    help="So many images, evenly spaced by name.  [default: all]",
)
@click.option(
    "--features",
    is_flag=True,
    help="Keep every feature row too, for precision, recall, KID and others.",
)
@extractor_options
@bad_fraction_option
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def stats(**typed: Any) -> None:
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

    options = StatsOptions(**typed)
    recipe = find_protocol(options.protocol)
    measure.check_out(options.out)
    weights = _weights(options)
    _check_beam(options.beam_args)
    images = measure.named_images(
        options.source, options.split, options.resolution, options.crop, options.num
    )
    if options.dry_run:
        facts = {"images": images.size, "resolution": images.resolution, **images.facts()}
        _echo_plan({**facts, "protocol": recipe.name, "out": str(options.out)})
        return
    protocol = measure.protocol_of(recipe, images.resolution, weights)
    warn_of_rank(images.size, protocol.dim, "images", _warn)
    measuring = measure.MeasureOptions(
        options.beam_args, bar, weights, options.features, options.max_bad_fraction
    )
    measured = measure.measure_images(images, protocol, options.out, measuring)
    facts = measure.summary(measured.statistics, options.out)
    click.echo(printable(measure.describe(facts)))
    if options.as_json:
        click.echo(json.dumps(facts))


@click.command()
@click.argument("workdirs", type=READ, nargs=-1, required=True, metavar="WORKDIR...")
@click.option(
    "--out",
    type=WRITTEN,
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
    from schemas.run import read_run

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
            click.echo(printable(f"{text}\n"))
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def _weights(options: ExtractorOptions) -> "Weights":
    from evaluation.extractors import Weights

    path = options.extractor_weights
    if path is not None and not path.exists():
        raise UserError(f"{path}: no such weights; give a file, or the folder that holds it")
    return Weights(str(path.absolute()) if path else None, options.extractor_sha256)


def _check_beam(beam_args: tuple[str, ...]) -> None:
    """Options of Beam, before anything is drawn or read. Raises `UserError`."""
    if beam_args:
        from pipelines.runners.runner import check_runner

        check_runner(beam_args, {})


def _check_weights(run: "Run", options: SampleOptions) -> None:
    from flowtrain.state.checkpoint import check_weights

    check_weights(options.workdir, run, options.weights)


def _warn(message: str) -> None:
    click.echo(printable(f"Warning: {message}"), err=True)


def _echo_plan(plan: dict[str, Any]) -> None:
    rows = [(name, str(value)) for name, value in plan.items()]
    click.echo(printable("\n".join(aligned(rows))))
