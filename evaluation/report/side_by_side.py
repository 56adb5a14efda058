"""`flowtrain report A B`: two or more runs side by side, on one page and as Markdown."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.draw.setting import CYCLIC
from evaluation.progress import Notify
from evaluation.report import cards
from evaluation.report.page import SampleGrid, guidance_text, latest_series, pair_plots, step_block
from evaluation.report.pictures import COLUMNS, Picture, class_rows, fresh_samples, stored_samples
from evaluation.report.plots import comparison_pair_plot, comparison_plot, losses_plot
from evaluation.report.render import WHOLE, Plot, or_none, plot, read_metrics, render, write_page
from evaluation.report.reproduce import commands
from evaluation.report.tables import (
    Table,
    by_setting,
    describe,
    distances,
    figure,
    metrics_table,
    model_name,
    model_table,
    setting_text,
    steps_table,
)
from evaluation.results import Result, read_results
from schemas.errors import UserError
from schemas.recipes import recipe_tables
from schemas.run import Run, read_run
from schemas.text import dotted

TEMPLATE = "comparison.html.j2"
Cells = Mapping[tuple[int, float], Result]


@dataclass(frozen=True)
class Side:
    """A run of a comparison; `series` are its results of the shared protocol."""

    name: str
    workdir: Path
    run: Run
    metrics: list[dict[str, float]]
    series: list[Result]

    @property
    def title(self) -> str:
        """Its name, and what kind of model it is."""
        return model_name(self.run, self.name)

    @property
    def cells(self) -> Cells:
        """Its results by steps and guidance."""
        return by_setting(self.series)[2]


@dataclass(frozen=True)
class Strips:
    """Rows of samples under one heading, each with its name."""

    title: str
    rows: list[tuple[str, Picture]]


def plan(workdirs: Sequence[Path], out: Path) -> dict[str, Any]:
    """What the page would show, for --dry-run. Raises `UserError` as `read_sides`."""
    sides = read_sides(workdirs, lambda message: None)
    metrics = [side.series[0].protocol.metric for side in sides if side.series]
    compared = metrics[0] if metrics else "nothing measured"
    return {
        "runs": ", ".join(side.title for side in sides),
        "compared by": compared,
        "results": ", ".join(str(len(side.series)) for side in sides),
        "logged steps": ", ".join(str(len(side.metrics)) for side in sides),
        "out": out,
    }


def write_comparison(workdirs: Sequence[Path], out: Path, notify: Notify) -> str:
    """Write the page and return its tables in Markdown; missing parts are notified.

    Raises:
        UserError: no run in one of `workdirs`, one of them twice, damaged results, or no directory
            to write to.
    """
    sides = read_sides(workdirs, notify)
    write_page(out, lambda: render(collect(sides, notify), TEMPLATE))
    return markdown(sides)


def read_sides(workdirs: Sequence[Path], notify: Notify) -> list[Side]:
    """The runs, with the results that can be compared.

    Raises:
        UserError: no run in one of `workdirs`, one of them twice, or damaged results.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("report: a run is given twice; name each once")
    runs = [read_run(workdir) for workdir in workdirs]
    results = comparable([read_results(workdir) for workdir in workdirs])
    sides = []
    for name, workdir, run, found in zip(names(workdirs), workdirs, runs, results, strict=True):
        if not found and any(results):
            notify(
                f"{workdir}: has no results of the protocol and reference of the others; no "
                "distances of it"
            )
        sides.append(Side(name, workdir, run, read_metrics(workdir), found))
    sizes = {result.n for side in sides for result in side.series}
    if len(sizes) > 1:
        shown = ", ".join(map(str, sorted(sizes)))
        notify(
            f"distances of different numbers of samples ({shown}) should not be compared; repeat "
            "`flowtrain eval`"
        )
    return sides


def names(workdirs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or the whole paths where those are the same."""
    short = [workdir.resolve().name for workdir in workdirs]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, workdirs, strict=True)
    ]


def comparable(results: Sequence[Sequence[Result]]) -> list[list[Result]]:
    """Each run's newest series of the protocol and reference that most runs have."""

    def rule(result: Result) -> tuple[object, ...]:
        return result.protocol.for_distance(), result.reference.digest

    sampled = [[result for result in run if result.sampling is not None] for run in results]
    rules = [[rule(result) for result in reversed(run)] for run in sampled]  # newest first
    shared = _most_shared(rules)
    return [latest_series([result for result in run if rule(result) == shared]) for run in sampled]


def _most_shared(rules: Sequence[Sequence[tuple[object, ...]]]) -> tuple[object, ...] | None:
    """The rule that most runs have, of equals the first; None where no run has any."""
    runs = [set(run) for run in rules]
    distinct = dict.fromkeys(rule for run in rules for rule in run)
    return max(distinct, key=lambda rule: sum(rule in run for run in runs), default=None)


def markdown(sides: Sequence[Side]) -> str:
    """A table of the models, then the table of each; empty when nothing was measured."""
    measured = [side for side in sides if side.series]
    if not measured:
        return ""
    models = _model_table(measured).markdown()
    tables = [f"{side.title}: {steps_table(side.series)}" for side in measured]
    return "\n\n".join([models, *tables])


def _model_table(measured: Sequence[Side]) -> Table:
    steps = {side.title: side.run.recipe.sampler.steps for side in measured}
    return model_table({side.title: side.series for side in measured}, steps)


def collect(sides: Sequence[Side], notify: Notify) -> dict[str, Any]:
    """All that the template shows."""
    measured = [side for side in sides if side.series]
    runs = [side.run for side in sides]
    targets = {side.run.recipe.model.output for side in sides}
    return {
        "title": " and ".join(side.name for side in sides),
        "summaries": [(side.name, cards.summary(side.run)) for side in sides],
        "headline": [_headline(side) for side in measured],
        "facts": facts(sides),
        **_measurements(measured),
        "loss": _losses(sides),
        "same_target": len(targets) == 1,
        "noise": noise_text(sides),
        "setting": _setting_of_samples(sides),
        "samples": or_none(lambda: samples(sides), notify) or [],
        "steps": or_none(lambda: _step_blocks(sides), notify) or [],
        "differences": differences(runs),
        "times": _times(sides),
        "commands": _commands(sides),
        "versions": runs[0].versions,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _measurements(measured: Sequence[Side]) -> dict[str, Any]:
    """What the page shows of the runs that have results."""
    if not measured:
        return {"models": None, "distance": None, "protocol": []}
    return {
        "models": _model_table(measured),
        "distance": _distance(measured),
        "protocol": _protocol(measured[0].series[-1]),
    }


def _losses(sides: Sequence[Side]) -> Plot | None:
    learnt = {side.name: side.metrics for side in sides if len(side.metrics) > 1}
    if not learnt:
        return None
    return plot(losses_plot(learnt), "Training loss of each run against step.", WHOLE)


def _times(sides: Sequence[Side]) -> list[tuple[str, list[cards.Stage]]]:
    """The stages of each run that has noted times."""
    times = [(side.title, cards.times(side.run, side.metrics, side.series)) for side in sides]
    return [(title, stages) for title, stages in times if stages]


def _protocol(result: Result) -> cards.Card:
    """What the runs share of how they were measured: nothing of their samples."""
    return cards.protocol(result.model_copy(update={"sampling": None}))


def _headline(side: Side) -> cards.Headline:
    best = min(side.series, key=lambda result: result.distance)
    assert best.sampling is not None
    return cards.Headline(
        figure(best.distance),
        f"{side.name}, {best.protocol.metric}",
        f"at best: {setting_text(best.sampling)}",
    )


def facts(sides: Sequence[Side]) -> Table:
    """What each run is, a column a run."""

    def of(side: Side) -> dict[str, str]:
        run, model, train = side.run, side.run.recipe.model, side.run.recipe.train
        trained = dict(cards.training(side.metrics))
        space = "pixels" if run.vae is None else "latents"
        return {
            "model": f"DiT, depth {model.depth}, width {model.width}, patch {model.patch}",
            "parameters": f"{run.parameters:,}",
            "objective": f"{run.recipe.objective.kind}, predicts {model.output}",
            "data": f"{run.dataset.source}, {run.dataset.records:,} records",
            "sees": "{} x {} x {} {}".format(*run.latent_shape, space),
            "training": (
                f"{trained.get('step', '0')} of {train.steps:,} steps of {train.batch_size}"
            ),
            "training images/s": trained.get("images/s", "-"),
            "last loss": trained.get("loss", "-"),
        }

    columns = [of(side) for side in sides]
    body = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return Table(["", *(side.name for side in sides)], body, left=1)


def differences(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What differs in recipe and dataset: (table.key, the values in order of the runs)."""
    columns = []
    for run in runs:
        dataset = run.dataset.model_dump(mode="json", exclude={"path"})
        tables = {
            "dataset": {**dataset, "VAE": run.vae.id if run.vae else None},
            **recipe_tables(run.recipe),
        }
        columns.append(dotted(tables))
    keys = dict.fromkeys(key for column in columns for key in column)
    values = {key: [_value(column.get(key)) for column in columns] for key in keys}
    return [(key, " → ".join(each)) for key, each in values.items() if len(set(each)) > 1]


def _value(value: Any) -> str:
    text = "none" if value is None else cards.value_text(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _distance(measured: Sequence[Side]) -> dict[str, Any]:
    series = {side.name: side.series for side in measured}
    metric = measured[0].series[0].protocol.metric
    tables = []
    for side in measured:
        tables.append(
            {
                "title": side.title,
                "about": describe(side.series[0]),
                "steps": distances(side.series),
                "metrics": metrics_table(side.series),
            }
        )
    every = [result for side in measured for result in side.series]
    return {
        "plot": plot(comparison_plot(series), f"{metric} of each run against steps.", WHOLE),
        "pairs": pair_plots(every, lambda *axes: comparison_pair_plot(series, *axes)),
        "tables": tables,
    }


def shared_settings(sides: Sequence[Side]) -> list[tuple[int, float]]:
    """The (steps, guidance) that all runs were measured at, most steps first."""
    every = [set(side.cells) for side in sides]
    return sorted(set.intersection(*every), key=lambda setting: (-setting[0], setting[1]))


def best_setting(sides: Sequence[Side]) -> tuple[int, float] | None:
    """Of the shared settings that with the smallest product of distances."""

    def product(setting: tuple[int, float]) -> float:
        value = 1.0
        for side in sides:
            value *= max(side.cells[setting].distance, 0.0)
        return value

    return min(shared_settings(sides), key=product, default=None)


def _setting_of_samples(sides: Sequence[Side]) -> str:
    setting = best_setting(sides)
    if setting is None:
        return "each with the sampler of its recipe"
    sampling = sides[0].cells[setting].sampling
    assert sampling is not None
    return (
        f"{setting_text(sampling)}, the setting with the smallest distances that all were measured "
        "at"
    )


def same_noise(sides: Sequence[Side]) -> bool:
    """Whether sample i of every run begins with the same noise and has the same class."""

    setting = best_setting(sides)

    def start(side: Side) -> tuple[object, ...]:
        # drawn for the page, if there is none
        sampling = side.cells[setting].sampling if setting else None
        drawn = (sampling.seed, sampling.labels) if sampling else (0, CYCLIC)
        return side.run.latent_shape, side.run.sampled_classes, drawn

    return len({start(side) for side in sides}) == 1


def noise_text(sides: Sequence[Side]) -> str:
    """What may be compared image by image."""
    if same_noise(sides):
        return "Sample i of every run begins with the same noise."
    return "The runs begin with different noise: their shapes, classes or seeds differ."


def samples(sides: Sequence[Side]) -> list[Strips]:
    """The first samples of each class, a row a run; runs of other classes have a heading each.

    Raises:
        UserError: the samples are gone, or there is neither a sample set nor a checkpoint.
    """
    setting, strips = best_setting(sides), []
    for side in sides:
        classes = side.run.classes
        if setting is None:
            images, labels = fresh_samples(side.workdir, side.run)
        else:
            images, labels = stored_samples(
                side.workdir, side.cells[setting], COLUMNS * len(side.run.sampled_classes)
            )
        strips.append(class_rows(images, labels, classes, COLUMNS))
    if len({tuple(name for name, _ in each) for each in strips}) > 1:
        return [Strips(side.title, each) for side, each in zip(sides, strips, strict=True)]
    return [
        Strips(name, [(side.name, each[i][1]) for side, each in zip(sides, strips, strict=True)])
        for i, (name, _) in enumerate(strips[0])
    ]


def _step_blocks(sides: Sequence[Side]) -> list[tuple[str, list[tuple[str, list[SampleGrid]]]]]:
    """For each shared guidance weight and each run, a grid at every shared number of steps."""
    shared = shared_settings(sides)
    groups = []
    for cfg in sorted({cfg for _, cfg in shared}):
        settings = [setting for setting in shared if setting[1] == cfg]
        rows = [(side.title, _grids(side, settings)) for side in sides]
        groups.append((guidance_text(cfg), rows))
    return groups


def _grids(side: Side, settings: Sequence[tuple[int, float]]) -> list[SampleGrid]:
    return [step_block(side.workdir, side.run, side.cells[setting]) for setting in settings]


def _commands(sides: Sequence[Side]) -> list[str]:
    lines: list[str] = []
    for side in sides:
        lines += commands(side.workdir, side.run, None, side.series)[:-1]  # without its own page
    report = shlex.join(["flowtrain", "report", *(str(side.workdir) for side in sides)])
    return [*dict.fromkeys(lines), report]
