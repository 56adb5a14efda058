"""`flowtrain report`: everything about a run on one HTML page that needs nothing beside it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from evaluation import cards
from evaluation.commands import commands
from evaluation.evaluate import EVAL_DIR
from evaluation.plots import NARROW, Paint, accuracy_plot, distance_plot, draw, loss_plot
from evaluation.report_images import (
    COLUMNS,
    Picture,
    block,
    class_rows,
    data_uri,
    fresh_samples,
    reconstructions,
    stored_samples,
)
from evaluation.results import Result, read_results
from evaluation.tables import by_setting, describe, figure, rows, same_series, setting_text, steps_text
from pipelines.dataset import LatentDataset
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.run import METRICS_NAME, Run, read_run

TEMPLATE = "report.html.j2"
BLOCK_COLUMNS = 4


@dataclass(frozen=True)
class Plot:
    """A figure drawn twice: for a wide page and for a phone."""

    wide: str
    narrow: str
    alt: str


@dataclass(frozen=True)
class Block:
    """A grid at one number of steps."""

    title: str
    details: list[str]
    picture: Picture


def plan(workdir: Path, out: Path) -> dict[str, Any]:
    """What the page would show, for --dry-run."""
    results, metrics = read_results(workdir), read_metrics(workdir)
    return {"run": workdir, "results": len(results), "logged steps": len(metrics), "out": out}


def write_report(workdir: Path, out: Path, notify: Callable[[str], object]) -> None:
    """Write the page; parts that cannot be had are left out, and `notify` is told why.

    Raises:
        UserError: no run in `workdir`, damaged results, or no directory to write to.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no directory {out.parent}; make it first")
    write_atomic(out, render(collect(workdir, notify)))


def render(content: Mapping[str, Any]) -> str:
    """Fill the template in; everything is escaped."""
    import jinja2

    source = resources.files("evaluation").joinpath("templates", TEMPLATE).read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(content)


def collect(workdir: Path, notify: Callable[[str], object]) -> dict[str, Any]:
    """All that the template shows."""
    run, metrics, results = read_run(workdir), read_metrics(workdir), read_results(workdir)
    series = same_series(results, results[-1]) if results else []
    nearest = min(series, key=lambda result: result.distance) if series else None
    shown = cards.most_accurate(series) or nearest
    dataset = _or_none(lambda: LatentDataset(Path(run.dataset.path)), notify)
    if dataset is not None and dataset.manifest.digest() != run.dataset.digest:
        notify(f"{run.dataset.path}: not the dataset that the run was trained on any more; left out of the report")
        dataset = None
    manifest = dataset.manifest if dataset else None
    return {
        "title": f"{run.dataset.source}, {run.dataset.resolution} pixels",
        "headline": cards.headline(run, metrics, series),
        "summary": cards.summary(run),
        "samples": _or_none(lambda: _samples(workdir, run, shown), notify),
        "shown": _about_samples(run, shown),
        "steps": _or_none(lambda: _step_blocks(workdir, run, series), notify) or [],
        "distance": _distance(series),
        "loss": _plot(loss_plot(metrics), "Training loss against step.") if len(metrics) > 1 else None,
        "training": cards.training(metrics),
        "pairs": _or_none(lambda: reconstructions(dataset), notify) if dataset else None,
        "psnr": manifest.reconstruction if manifest else None,
        "times": cards.times(run, metrics, series),
        "recipe": cards.recipe(run),
        "dataset": cards.dataset(run, manifest),
        "protocol": cards.protocol(series[-1]) if series else [],
        "commands": commands(workdir, run, manifest, series),
        "versions": run.versions,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that tell of training; a last line that is being written is left out.

    Lines without a loss are of validation and previews, or of steps that were all skipped.
    """
    path = workdir / METRICS_NAME
    lines: list[dict[str, float]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return [line for line in lines if "loss" in line]


def _or_none(make: Callable[[], Any], notify: Callable[[str], object]) -> Any:
    """A part of the page, or nothing and a warning."""
    try:
        return make()
    except UserError as error:
        notify(f"left out of the report: {error}")
        return None


def _about_samples(run: Run, shown: Result | None) -> str:
    sampler = run.recipe.sampler
    if shown is None or shown.sampling is None:
        return f"{sampler.steps} steps, guidance {sampler.cfg:g}, as the recipe says"
    if shown.accuracy is None:
        return f"{setting_text(shown.sampling)}, the setting with the smallest distance"
    return f"{setting_text(shown.sampling)}, the setting most often classified as its class"


def _samples(workdir: Path, run: Run, shown: Result | None) -> list[tuple[str, Picture]]:
    num = COLUMNS * len(run.classes)
    images, labels = stored_samples(workdir, shown, num) if shown else fresh_samples(workdir, run)
    return class_rows(images, labels, run.classes, COLUMNS)


def _step_blocks(workdir: Path, run: Run, series: Sequence[Result]) -> list[tuple[str, list[Block]]]:
    """For each guidance weight, a grid at every number of steps; sample i starts from the same noise in all."""
    steps, guidances, cells = by_setting(series)
    figures = []
    for cfg in guidances:
        blocks = []
        for result in (cells[count, cfg] for count in steps if (count, cfg) in cells):
            assert result.sampling is not None
            images, labels = stored_samples(workdir, result, BLOCK_COLUMNS * len(run.classes))
            title = steps_text(result.sampling)
            details = [f"{result.protocol.metric} {figure(result.distance)}"]
            if result.accuracy is not None:
                details.append(f"{result.accuracy:.1%} right class")
            grid = block(images, labels, BLOCK_COLUMNS, f"Samples of {title}, one row a class")
            blocks.append(Block(title, details, grid))
        figures.append(("Without guidance" if cfg == 1 else f"Guidance {cfg:g}", blocks))
    return figures


def _distance(series: Sequence[Result]) -> dict[str, Any] | None:
    if not series:
        return None
    header, body = rows(series)
    scored = any(result.accuracy is not None for result in series)
    metric = series[0].protocol.metric
    return {
        "about": describe(series[0]),
        "header": header,
        "rows": body,
        "plot": _plot(distance_plot(series), f"{metric} against sampling steps."),
        "accuracy": _plot(accuracy_plot(series), "Accuracy against sampling steps.") if scored else None,
        "where": EVAL_DIR,
    }


def _plot(paint: Paint, alt: str) -> Plot:
    wide, narrow = (data_uri(draw(paint, size), "image/svg+xml") for size in ((5.4, 3.6), NARROW))
    return Plot(wide, narrow, alt)
