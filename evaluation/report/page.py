"""`flowtrain report`: everything about a run on one HTML page that needs nothing beside it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.progress import Notify
from evaluation.report import cards
from evaluation.report.denoising import denoising_paths
from evaluation.report.pictures import (
    COLUMNS,
    Picture,
    block,
    class_rows,
    fresh_samples,
    neighbour_pictures,
    reconstructions,
    stored_samples,
)
from evaluation.report.plots import (
    Paint,
    accuracy_plot,
    distance_plot,
    guidance_plot,
    loss_plot,
    metric_pair_plot,
)
from evaluation.report.render import Plot, or_none, plot, read_metrics, render, write_page
from evaluation.report.reproduce import commands
from evaluation.report.tables import (
    by_setting,
    describe,
    distances,
    figure,
    metrics_table,
    same_series,
    setting_text,
    steps_text,
)
from evaluation.results import Result, read_results
from pipelines.dataset.finished import LatentDataset
from schemas.run import EVAL_DIR, Run, read_run

TEMPLATE = "report.html.j2"
BLOCK_COLUMNS = 4


@dataclass(frozen=True)
class SampleGrid:
    """A grid at one number of steps."""

    title: str
    details: list[str]
    picture: Picture


def plan(workdir: Path, out: Path) -> dict[str, Any]:
    """What the page would show, for --dry-run."""
    results, metrics = read_results(workdir), read_metrics(workdir)
    return {"run": workdir, "results": len(results), "logged steps": len(metrics), "out": out}


def write_report(workdir: Path, out: Path, notify: Notify) -> None:
    """Write the page; parts that cannot be had are left out, and `notify` is told why.

    Raises:
        UserError: no run in `workdir`, damaged results, or no directory to write to.
    """
    write_page(out, lambda: render(collect(workdir, notify), TEMPLATE))


def collect(workdir: Path, notify: Notify) -> dict[str, Any]:
    """All that the template shows."""
    run, metrics = read_run(workdir), read_metrics(workdir)
    series = latest_series(read_results(workdir))
    nearest = min(series, key=lambda result: result.distance, default=None)
    shown = cards.most_accurate(series) or nearest
    dataset = _dataset(run, notify)
    manifest = dataset.manifest if dataset else None
    guidance = shown.sampling.cfg if shown and shown.sampling else run.recipe.sampler.cfg
    return {
        "title": f"{run.dataset.source}, {run.dataset.resolution} pixels",
        "headline": cards.headline(run, metrics, series),
        "summary": cards.summary(run),
        "samples": or_none(lambda: _samples(workdir, run, shown), notify),
        "shown": _about_samples(run, shown),
        "steps": or_none(lambda: _step_blocks(workdir, run, series), notify) or [],
        "paths": or_none(lambda: denoising_paths(workdir, run, series, guidance), notify),
        "distance": _distance(series),
        "metrics": _metrics(series),
        "loss": _loss(metrics),
        "training": cards.training(metrics),
        "pairs": or_none(lambda: reconstructions(dataset), notify) if dataset else None,
        "psnr": manifest.reconstruction if manifest else None,
        "neighbours": neighbour_pictures(workdir, series, shown) if shown else [],
        "times": cards.times(run, metrics, series),
        "recipe": cards.recipe(run),
        "dataset": cards.dataset(run, manifest),
        "protocol": cards.protocol(series[-1]) if series else [],
        "commands": commands(workdir, run, manifest, series),
        "versions": run.versions,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _dataset(run: Run, notify: Notify) -> LatentDataset | None:
    """The dataset of a run, if it is there and still the same."""
    dataset = or_none(lambda: LatentDataset(Path(run.dataset.path)), notify)
    if dataset is not None and dataset.manifest.digest() != run.dataset.digest:
        notify(
            f"{run.dataset.path}: not the dataset that the run was trained on any more; left out "
            "of the report"
        )
        return None
    return dataset


def _loss(metrics: Sequence[Mapping[str, float]]) -> Plot | None:
    if len(metrics) < 2:
        return None
    return plot(loss_plot(metrics), "Training loss against step.")


def latest_series(results: Sequence[Result]) -> list[Result]:
    """The newest table of a run: each of its settings once, as it was measured last."""
    sampled = [result for result in results if result.sampling is not None]
    if not sampled:
        return []
    _, _, cells = by_setting(same_series(sampled, sampled[-1]))
    return list(cells.values())


def _about_samples(run: Run, shown: Result | None) -> str:
    sampler = run.recipe.sampler
    if shown is None or shown.sampling is None:
        return f"{sampler.steps} steps, guidance {sampler.cfg:g}, as the recipe says"
    if shown.accuracy is None:
        return f"{setting_text(shown.sampling)}, the setting with the smallest distance"
    return f"{setting_text(shown.sampling)}, the setting most often classified as its class"


def _samples(workdir: Path, run: Run, shown: Result | None) -> list[tuple[str, Picture]]:
    num = COLUMNS * len(run.sampled_classes)
    images, labels = stored_samples(workdir, shown, num) if shown else fresh_samples(workdir, run)
    return class_rows(images, labels, run.classes, COLUMNS)


def _step_blocks(
    workdir: Path, run: Run, series: Sequence[Result]
) -> list[tuple[str, list[SampleGrid]]]:
    """For each guidance weight, a grid at every number of steps, all from the same noise."""
    steps, guidances, cells = by_setting(series)
    groups = []
    for cfg in guidances:
        results = [cells[count, cfg] for count in steps if (count, cfg) in cells]
        grids = [step_block(workdir, run, result) for result in results]
        groups.append((guidance_text(cfg), grids))
    return groups


def step_block(workdir: Path, run: Run, result: Result, name: str = "") -> SampleGrid:
    """A grid of a result's samples with its numbers, under its number of steps or another name.

    Raises:
        UserError: the samples are gone.
    """
    assert result.sampling is not None
    images, labels = stored_samples(workdir, result, BLOCK_COLUMNS * len(run.sampled_classes))
    title = name or steps_text(result.sampling)
    details = [f"{result.protocol.metric} {figure(result.distance)}"]
    if result.accuracy is not None:
        details.append(f"{result.accuracy:.1%} right class")
    return SampleGrid(
        title, details, block(images, labels, BLOCK_COLUMNS, f"Samples of {title}, one row a class")
    )


def guidance_text(cfg: float) -> str:
    """For above a group of pictures."""
    return "Without guidance" if cfg == 1 else f"Guidance {cfg:g}"


def _distance(series: Sequence[Result]) -> dict[str, Any] | None:
    if not series:
        return None
    metric = series[0].protocol.metric
    plots = [plot(distance_plot(series), f"{metric} against sampling steps.")]
    if len(by_setting(series)[1]) > 1:
        plots.append(plot(guidance_plot(series), f"{metric} against guidance weight."))
    if any(result.accuracy is not None for result in series):
        plots.append(plot(accuracy_plot(series), "Accuracy against sampling steps."))
    return {
        "about": describe(series[0]),
        "table": distances(series),
        "plots": plots,
        "where": EVAL_DIR,
    }


def _metrics(series: Sequence[Result]) -> dict[str, Any] | None:
    """What was measured beside the distance, or None."""
    table = metrics_table(series) if series else None
    if table is None:
        return None
    return {
        "table": table,
        "plots": pair_plots(series, lambda *axes: metric_pair_plot(series, *axes)),
    }


def pair_plots(results: Sequence[Result], paint: Callable[[str, str], Paint]) -> list[Plot]:
    """Precision against recall, density against coverage, as far as they are in the results.

    `paint` draws for a metric across and one up.
    """
    return [
        plot(paint(across, up), f"{up} against {across}, one point a setting.")
        for across, up in (("recall", "precision"), ("coverage", "density"))
        if any({across, up} <= result.metrics.keys() for result in results)
    ]
