"""Results as tables in Markdown, aligned so that they can be read as they are.

Steps: one row a number of steps, two columns (distance, accuracy) a guidance weight. Models: one
    row a run. Metrics:
one row a setting, what was measured beside the distance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.draw.setting import CYCLIC
from evaluation.results import Result, Sampling
from schemas.config import SIZES, DiTSize
from schemas.run import Run

ADAPTIVE_ROW = "adaptive"  # stands for a number of steps


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `left` columns are words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 0

    def markdown(self) -> str:
        """GitHub's, columns padded."""
        columns = zip(self.header, *self.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]

        def line(cells: Sequence[str]) -> str:
            pairs = list(zip(cells, widths, strict=True))
            words = [cell.ljust(width) for cell, width in pairs[: self.left]]
            numbers = [cell.rjust(width) for cell, width in pairs[self.left :]]
            return f"| {' | '.join([*words, *numbers])} |"

        left = ["-" * width for width in widths[: self.left]]
        right = ["-" * (width - 1) + ":" for width in widths[self.left :]]
        rule = line([*left, *right])
        return "\n".join([line(self.header), rule, *map(line, self.rows)])


def describe(result: Result) -> str:
    """One line of what was measured, for above a table."""
    protocol, sampling = result.protocol, result.sampling
    against = "against given statistics"
    if result.reference.n:
        against = f"against {result.reference.n} images"
    if sampling is None:
        subject = f"{result.n} images" if result.n else "given statistics"
        return f"{protocol.metric}, {subject} {against}"
    settings = ", ".join([sampling.sampler, *unusual(sampling), f"seed {sampling.seed}"])
    return (
        f"{protocol.metric}, {result.n} samples {against}; "
        f"{weights_text(sampling)} of step {sampling.step}, {settings}"
    )


def unusual(sampling: Sampling) -> list[str]:
    """What else a table's settings have in common, where it is not what is left out."""
    remarks = sampling.settings.remarks
    return remarks if sampling.labels == CYCLIC else [*remarks, f"labels {sampling.labels}"]


def weights_text(sampling: Sampling) -> str:
    """Which weights, in words; those of further averages by their names."""
    name = {"ema": "EMA", "params": "raw"}.get(sampling.weights, sampling.weights)
    return f"{name} weights"


def by_setting(
    results: Sequence[Result],
) -> tuple[list[int], list[float], dict[tuple[int, float], Result]]:
    """Step counts (descending), guidance weights, and each pair's newest result."""
    cells = {
        (result.sampling.steps, result.sampling.cfg): result
        for result in results
        if result.sampling is not None
    }
    steps = sorted({steps for steps, _ in cells}, reverse=True)
    return steps, sorted({cfg for _, cfg in cells}), cells


def same_series(results: Sequence[Result], like: Result) -> list[Result]:
    """Results that differ from `like` in steps and guidance only: one table's."""

    def series(result: Result) -> tuple[object, ...]:
        assert result.sampling is not None
        # an adaptive solver has another name, and its own tolerance
        varying = {"steps": 0, "nfe": 0, "cfg": 0.0}
        fixed: Sampling = result.sampling.model_copy(update=varying)
        return fixed, result.protocol.for_distance(), result.reference.digest

    return [r for r in results if r.sampling is not None and series(r) == series(like)]


def figure(distance: float) -> str:
    """Two decimals, as papers print them; three below 1."""
    return f"{distance:.2f}" if distance >= 1 else f"{distance:.3f}"


def steps_text(sampling: Sampling) -> str:
    """How far the solver went, in words."""
    if sampling.tolerance is not None:
        return f"tolerance {sampling.tolerance:g}"
    return f"{sampling.steps} step{'s' if sampling.steps > 1 else ''}"


def setting_text(sampling: Sampling) -> str:
    """Steps and guidance in words."""
    steps = steps_text(sampling)
    return f"{steps}, no guidance" if sampling.cfg == 1 else f"{steps}, guidance {sampling.cfg:g}"


def distances(results: Sequence[Result]) -> Table:
    """A row a number of steps; `-` where a pair was not measured."""
    steps, guidances, cells = by_setting(results)
    metric = results[0].protocol.metric
    scored = any(result.accuracy is not None for result in results)
    header = ["steps"]
    for cfg in guidances:
        header.append(f"{metric}, cfg {cfg:g}")
        if scored:
            header.append(f"accuracy, cfg {cfg:g}")
    body = []
    for count in steps:
        row = [str(count) if count else ADAPTIVE_ROW]
        for cfg in guidances:
            result = cells.get((count, cfg))
            row.append(figure(result.distance) if result else "-")
            if scored:
                accuracy = result.accuracy if result else None
                row.append("-" if accuracy is None else f"{accuracy:.1%}")
        body.append(row)
    return Table(header, body)


def by_series(results: Sequence[Result]) -> list[list[Result]]:
    """Results of samples in groups that share a table, by first appearance."""
    groups: list[list[Result]] = []
    for result in results:
        if not any(result in group for group in groups):
            groups.append(same_series(results, result))
    return groups


def steps_table(results: Sequence[Result]) -> str:
    """A line that says what, then the table of one series."""
    return f"{describe(results[0])}. Lower is better.\n\n{distances(results).markdown()}"


def model_name(run: Run, name: str) -> str:
    """A run in a few words."""
    model, kind = run.recipe.model, run.recipe.objective.kind
    size = f"DiT {model.depth}x{model.width}/{model.patch}"
    sizes = DiTSize(model.depth, model.width, model.heads)
    if model.size is not None and sizes == SIZES[model.size]:
        size = f"DiT-{model.size}/{model.patch}"
    return f"{name} ({kind}, {size})"


def model_table(series: Mapping[str, Sequence[Result]], steps: Mapping[str, int]) -> Table:
    """A row a model: distances by guidance weight at its number of steps, or the most.

    Args:
        series: by the model's name, results of one protocol and reference.
        steps: by the same name, the number of steps that its recipe says.
    """
    cells = {name: by_setting(results) for name, results in series.items()}
    guidances = sorted({cfg for _, found, _ in cells.values() for cfg in found})
    metric = next(iter(series.values()))[0].protocol.metric
    body = []
    for name, (counts, _, found) in cells.items():
        count = steps[name] if steps[name] in counts else counts[0]
        values = [found.get((count, cfg)) for cfg in guidances]
        shown = str(count) if count else ADAPTIVE_ROW
        body.append([name, shown, *(figure(value.distance) if value else "-" for value in values)])
    columns = [
        f"{metric}, no guidance" if cfg == 1 else f"{metric}, cfg {cfg:g}" for cfg in guidances
    ]
    return Table(["model", "steps", *columns], body, left=1)


def metrics_table(results: Sequence[Result]) -> Table | None:
    """A row a setting, a column a metric beside the distance; None without any."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    if not names:
        return None
    metric = results[0].protocol.metric
    body = []
    for result in results:
        setting = setting_text(result.sampling) if result.sampling else "images"
        values = [_metric(name, result.metrics) for name in names]
        body.append([setting, figure(result.distance), *values])
    columns = [METRIC_NAMES.get(name, name) for name in names]
    return Table(["setting", metric, *columns], body, left=1)


def _metric(name: str, metrics: Mapping[str, float]) -> str:
    """Three decimals; five of KID, which is small."""
    if name not in metrics:
        return "-"
    digits = 5 if name.startswith("kid") else 3
    return f"{metrics[name]:.{digits}f}"


METRIC_NAMES = {
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "inception_score_std": "its deviation",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "kid": "KID",
    "kid_std": "deviation of a subset",
    "kid_sem": "standard error",
    "fd_parts": "distance of a fifth",
    "fd_parts_std": "its deviation",
    "fd_infinity": "distance at n = inf",
    "fd_infinity_se": "error of the fit",
}


def markdown(results: Sequence[Result], run: Run | None = None, name: str = "") -> str:
    """Every table of some results, each with what it is; compared images get one line."""
    if results[0].sampling is None:
        lines = [
            f"{describe(result)}: {result.distance:.4f}{_accuracy(result)}" for result in results
        ]
        table = metrics_table(results)
        if table:
            lines += ["", table.markdown()]
        return "\n".join(lines)
    parts = []
    for series in by_series(results):
        if run is not None:
            label = model_name(run, name)
            parts.append(model_table({label: series}, {label: run.recipe.sampler.steps}).markdown())
        parts.append(steps_table(series))
        table = metrics_table(series)
        if table:
            parts.append(table.markdown())
        parts.append(_protocol(series[0]))
    return "\n\n".join(parts)


def _protocol(result: Result) -> str:
    protocol = result.protocol
    return (
        f"Extractor {protocol.extractor} ({protocol.weights}), resize {protocol.resize}, "
        f"resolution {protocol.resolution}; reference {result.reference.digest[:12]}."
    )


def _accuracy(result: Result) -> str:
    return "" if result.accuracy is None else f", {result.accuracy:.1%} classified as labelled"
