"""Figures of results and training, as SVG or PNG bytes. No pyplot: nothing global, nothing needs a display."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.results import Result
from evaluation.tables import by_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, RULE = "#1b1f24", "#5c6670", "#d9dde2"
# Dark enough on white, apart in grey and for colour-blind eyes (Okabe & Ito 2008, slightly darkened).
COLOURS = ("#0063a8", "#c8500a", "#00805c", "#a03c7c", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v")
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
    "svg.fonttype": "path",
    "svg.hashsalt": "flowtrain",
}


def draw(paint: Paint, size: tuple[float, float] = WIDE, kind: str = "svg") -> bytes:
    """Run `paint` on the axes of a new figure of `size` inches and return the file; the same input, the same bytes."""
    import logging

    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font of the list may be missing
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    with matplotlib.rc_context(_STYLE):
        figure: Figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def distance_plot(results: Sequence[Result]) -> Paint:
    """Distance against sampling steps (or evaluations, of an adaptive solver), one line a guidance weight; both log."""

    def value(result: Result) -> float:
        return result.distance

    def paint(axes: "Axes") -> None:
        _lines(axes, results, value)
        axes.set_yscale("log")
        _plain_ticks(axes, "y")
        axes.set_ylabel(results[0].protocol.metric + " (lower is better)")

    return paint


def accuracy_plot(results: Sequence[Result]) -> Paint:
    """Share of samples classified as their label, in percent, against sampling steps."""

    def value(result: Result) -> float:
        return 100 * result.accuracy if result.accuracy is not None else float("nan")

    def paint(axes: "Axes") -> None:
        _lines(axes, results, value)
        axes.set_ylim(0, 103)
        axes.set_ylabel("classified as their label (%)")

    return paint


def _lines(axes: "Axes", results: Sequence[Result], value: Callable[[Result], float]) -> None:
    steps, guidances, cells = by_setting(results)
    for i, cfg in enumerate(guidances):
        points = [
            (_effort(cells[count, cfg]), value(cells[count, cfg])) for count in sorted(steps) if (count, cfg) in cells
        ]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        label = "no guidance" if cfg == 1 else f"guidance {cfg:g}"
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5.5, label=label, lw=1.8)
    axes.set_xscale("log")
    efforts = sorted({_effort(result) for result in cells.values()})
    axes.set_xticks(efforts, [f"{effort:g}" for effort in efforts])
    axes.minorticks_off()
    axes.set_xlabel("sampling steps" if all(steps) else "network evaluations")
    axes.legend(loc="best")


def _effort(result: Result) -> float:
    """Steps, or what an adaptive solver took in their place."""
    assert result.sampling is not None
    return result.sampling.steps or round(result.nfe, 1)


def _narrow(axes: "Axes", axis: str) -> bool:
    """Whether an axis spans less than a factor of 30, where 1, 2, 5 would be too few marks."""
    low, high = axes.get_ylim() if axis == "y" else axes.get_xlim()
    return high < 30 * low


def _plain_ticks(axes: "Axes", axis: str) -> None:
    """1, 2, 5, 10, ... in plain figures instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    target = axes.yaxis if axis == "y" else axes.xaxis
    target.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if _narrow(axes, axis) else (1, 2, 5)))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    target.set_minor_formatter(NullFormatter())


def loss_plot(metrics: Sequence[Mapping[str, float]]) -> Paint:
    """Training loss against step: what was logged, faint, and a running median over it."""

    def paint(axes: "Axes") -> None:
        steps = np.array([line["step"] for line in metrics])
        loss = np.array([line["loss"] for line in metrics])
        window = max(1, len(loss) // 25)
        smooth = [np.median(loss[max(0, i - window) : i + window + 1]) for i in range(len(loss))]
        axes.plot(steps, loss, color=COLOURS[0], alpha=0.3, lw=1)
        axes.plot(steps, smooth, color=COLOURS[0], lw=2)
        axes.set_yscale("log")
        _plain_ticks(axes, "y")
        axes.set_xlim(0, steps.max())
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")

    return paint
