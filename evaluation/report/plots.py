"""Figures as SVG or PNG bytes, without pyplot: no global state, no display."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation.report.tables import ADAPTIVE_ROW, by_setting, steps_text
from evaluation.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, RULE = "#1b1f24", "#5c6670", "#d9dde2"
# Dark enough on white, apart in grey and for colour-blind eyes (Okabe & Ito 2008, slightly
# darkened).
COLOURS = ("#0063a8", "#c8500a", "#00805c", "#a03c7c", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v")
_STROKES = ("-", "--", ":", "-.")
WIDE, NARROW = (7.4, 3.5), (3.9, 3.3)  # inches

Paint = Callable[["Axes"], None]  # draws on the axes of a new figure

_STYLE: Any = {
    "font.family": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs are no formulas, whatever is in them
    "svg.fonttype": "path",
    "svg.hashsalt": "flowtrain",
}


def draw(paint: Paint, size: tuple[float, float] = WIDE, kind: str = "svg") -> bytes:
    """A figure of `size` inches with `paint` run on its axes; same input, same bytes."""
    import logging

    import matplotlib
    from matplotlib.figure import Figure

    # a font of the list may be missing
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    with matplotlib.rc_context(_STYLE):
        figure: Figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def distance_plot(results: Sequence[Result]) -> Paint:
    """Distance against steps (or evaluations), a line a guidance weight, log-log."""

    def paint(axes: "Axes") -> None:
        _lines(axes, _by_guidance(results), _distance)
        _distance_axis(axes, results)

    return paint


def guidance_plot(results: Sequence[Result]) -> Paint:
    """Distance (log) against guidance weight, one line a number of steps."""

    def paint(axes: "Axes") -> None:
        steps, guidances, cells = by_setting(results)
        for i, count in enumerate(steps):
            points = [
                (cfg, cells[count, cfg].distance) for cfg in guidances if (count, cfg) in cells
            ]
            sampling = cells[count, points[0][0]].sampling
            assert sampling is not None
            axes.plot(*zip(*points, strict=True), label=steps_text(sampling), **_look(i))
        axes.set_xticks(guidances, [f"{cfg:g}" for cfg in guidances])
        axes.set_xlabel("guidance weight (1 is none)")
        _distance_axis(axes, results)
        axes.legend(loc="best")

    return paint


def comparison_plot(runs: Mapping[str, Sequence[Result]]) -> Paint:
    """As `distance_plot` for several runs by name: a colour a run, a stroke a guidance weight."""

    def paint(axes: "Axes") -> None:
        _lines(axes, _by_run(runs), _distance)
        _distance_axis(axes, next(iter(runs.values())))

    return paint


def accuracy_plot(results: Sequence[Result]) -> Paint:
    """Share of samples classified as their label, in percent, against sampling steps."""

    def value(result: Result) -> float:
        return 100 * result.accuracy if result.accuracy is not None else float("nan")

    def paint(axes: "Axes") -> None:
        _lines(axes, _by_guidance(results), value)
        axes.set_ylim(0, 103)
        axes.set_ylabel("classified as their label (%)")

    return paint


def metric_pair_plot(results: Sequence[Result], across: str, up: str) -> Paint:
    """A point a setting with both metrics, labelled by steps; a line a guidance weight."""

    def paint(axes: "Axes") -> None:
        _pairs(axes, _by_guidance(_having(results, across, up)), across, up)

    return paint


def comparison_pair_plot(runs: Mapping[str, Sequence[Result]], across: str, up: str) -> Paint:
    """As `metric_pair_plot` for runs: a colour a run, a stroke a guidance weight."""

    def paint(axes: "Axes") -> None:
        _pairs(
            axes,
            _by_run({name: _having(results, across, up) for name, results in runs.items()}),
            across,
            up,
        )

    return paint


def _having(results: Sequence[Result], *metrics: str) -> list[Result]:
    return [result for result in results if set(metrics) <= result.metrics.keys()]


def _pairs(axes: "Axes", lines: Mapping[str, "_Line"], across: str, up: str) -> None:
    from matplotlib.patheffects import withStroke

    halo: Any = {"path_effects": [withStroke(linewidth=2.5, foreground="white")], "zorder": 9}
    for label, line in lines.items():
        points = [(result.metrics[across], result.metrics[up]) for result in line.results]
        axes.plot(*zip(*points, strict=True), label=label, **{**line.look, "lw": 0.9})
        for result, point in zip(line.results, points, strict=True):
            text = str(result.sampling.steps or ADAPTIVE_ROW) if result.sampling else ""
            place: Any = {"xytext": (6, 5), "textcoords": "offset points"}
            axes.annotate(text, point, fontsize=9, color=line.look["color"], **place, **halo)
    axes.margins(0.12)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(loc="best", title="labelled by steps", title_fontsize=9)


class _Line(NamedTuple):
    """Results along a line, and how it is drawn."""

    results: list[Result]
    look: dict[str, Any]


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 5.5,
        "lw": 1.8,
    }


def _by_guidance(results: Sequence[Result]) -> dict[str, _Line]:
    """By what a legend calls it, each line in order of steps."""
    steps, guidances, cells = by_setting(results)
    return {
        "no guidance" if cfg == 1 else f"guidance {cfg:g}": _Line(
            [cells[count, cfg] for count in sorted(steps) if (count, cfg) in cells], _look(i)
        )
        for i, cfg in enumerate(guidances)
    }


def legible(name: str) -> str:
    """A run's name for a legend, which leaves out what begins with an underscore."""
    return f"\u2009{name}" if name.startswith("_") else name


def _by_run(runs: Mapping[str, Sequence[Result]]) -> dict[str, _Line]:
    """A line a run and guidance weight, which has the same stroke in every run."""
    guidances = by_setting([result for results in runs.values() for result in results])[1]
    lines = {}
    for i, (name, results) in enumerate(runs.items()):
        for label, line in _by_guidance(results).items():
            stroke = _STROKES[guidances.index(_cfg(line.results[0])) % len(_STROKES)]
            lines[f"{legible(name)}, {label}"] = _Line(
                line.results, {**_look(i), "linestyle": stroke}
            )
    return lines


def _distance(result: Result) -> float:
    return result.distance


def _cfg(result: Result) -> float:
    assert result.sampling is not None
    return result.sampling.cfg


def _distance_axis(axes: "Axes", results: Sequence[Result]) -> None:
    axes.set_yscale("log")
    _plain_ticks(axes, "y")
    axes.set_ylabel(results[0].protocol.metric + " (lower is better)")


def _lines(axes: "Axes", lines: Mapping[str, _Line], value: Callable[[Result], float]) -> None:
    results = [result for line in lines.values() for result in line.results]
    fixed = all(result.sampling is not None and result.sampling.steps for result in results)
    for label, line in lines.items():
        points = [(_effort(result, fixed), value(result)) for result in line.results]
        axes.plot(*zip(*points, strict=True), label=label, **line.look)
    axes.set_xscale("log")
    efforts = sorted({_effort(result, fixed) for result in results})
    axes.set_xticks(efforts, [f"{effort:g}" for effort in efforts])
    axes.minorticks_off()
    axes.set_xlabel("sampling steps" if fixed else "network evaluations")
    axes.legend(loc="best")


def _effort(result: Result, fixed: bool) -> float:
    """Steps; network evaluations where a result beside it has no steps of its own."""
    assert result.sampling is not None
    return result.sampling.steps if fixed else round(result.nfe, 1)


def _narrow(axes: "Axes", axis: str) -> bool:
    """Whether an axis spans less than a factor of 30, where 1, 2, 5 would be too few marks."""
    low, high = axes.get_ylim() if axis == "y" else axes.get_xlim()
    return high < 30 * low


def _plain_ticks(axes: "Axes", axis: str) -> None:
    """1, 2, 5, 10, ... in plain figures instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    target = axes.yaxis if axis == "y" else axes.xaxis
    target.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if _narrow(axes, axis) else (1, 2, 5))
    )
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    target.set_minor_formatter(NullFormatter())


def loss_plot(metrics: Sequence[Mapping[str, float]]) -> Paint:
    """Training loss against step: what was logged, faint, and a running median over it."""
    return losses_plot({"": metrics})


def losses_plot(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Paint:
    """As `loss_plot` for several runs by name."""

    def paint(axes: "Axes") -> None:
        last = 0.0
        for i, (name, metrics) in enumerate(runs.items()):
            steps = np.array([line["step"] for line in metrics])
            loss = np.array([line["loss"] for line in metrics])
            window = max(1, len(loss) // 25)
            smooth = [
                np.median(loss[max(0, k - window) : k + window + 1]) for k in range(len(loss))
            ]
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(steps, loss, color=colour, alpha=0.3, lw=1)
            axes.plot(steps, smooth, color=colour, lw=2, label=legible(name))
            last = max(last, steps.max())
        axes.set_yscale("log")
        _plain_ticks(axes, "y")
        axes.set_xlim(0, last)
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")
        if len(runs) > 1:
            axes.legend(loc="best")

    return paint
