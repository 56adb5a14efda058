"""Plots: what is on the axes, and the same bytes for the same results."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from evaluation.report.plots import (
    accuracy_plot,
    comparison_pair_plot,
    comparison_plot,
    distance_plot,
    draw,
    guidance_plot,
    loss_plot,
    losses_plot,
    metric_pair_plot,
)
from evaluation.results import Result
from tests.evaluation.results import result

RESULTS = [result(steps, cfg, 100 / steps + cfg) for cfg in (1.0, 4.0) for steps in (100, 20, 5, 1)]


def x_values(line: Line2D) -> list[float]:
    return np.asarray(line.get_xdata()).tolist()


def y_values(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_one_line_a_guidance_weight_on_logarithmic_axes() -> None:
    axes = Figure().subplots()
    distance_plot(RESULTS)(axes)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"no guidance", "guidance 4"}
    assert x_values(lines["guidance 4"]) == [1, 5, 20, 100]
    assert y_values(lines["guidance 4"]) == [104, 24, 9, 5]
    assert axes.get_ylabel() == "FD(tiny) (lower is better)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20", "100"]


def test_accuracy_is_in_percent_and_may_be_missing() -> None:
    axes = Figure().subplots()
    accuracy_plot([*RESULTS, result(2, 1.0, accuracy=None)])(axes)
    assert y_values(axes.get_lines()[1]) == [50] * 4


def test_files_are_whole_and_repeatable() -> None:
    svg = draw(distance_plot(RESULTS))
    assert svg == draw(distance_plot(RESULTS))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert draw(distance_plot(RESULTS[:1]), kind="png").startswith(b"\x89PNG")


def test_the_loss_curve_shows_every_logged_step() -> None:
    metrics = [{"step": step, "loss": 2.0 / step} for step in range(10, 200, 10)]
    axes = Figure().subplots()
    loss_plot(metrics)(axes)
    assert x_values(axes.get_lines()[0]) == list(range(10, 200, 10))
    assert draw(loss_plot(metrics)).startswith(b"<?xml")


def test_distance_against_guidance_has_a_line_a_number_of_steps() -> None:
    axes = Figure().subplots()
    guidance_plot([*RESULTS, result(1, 2.0, 50)])(axes)
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["100 steps", "20 steps", "5 steps", "1 step"]
    assert x_values(lines["1 step"]) == [1, 2, 4]
    assert y_values(lines["1 step"]) == [101, 50, 104]
    assert y_values(lines["20 steps"]) == [6, 9]


def scored(steps: int, cfg: float, **metrics: float) -> Result:
    return result(steps, cfg).model_copy(update={"metrics": metrics})


PAIRS = [
    scored(20, 1, precision=0.5, recall=0.8),
    scored(5, 1, precision=0.4, recall=0.7),
    scored(20, 4, precision=0.9, recall=0.3),
    scored(5, 4, density=1.0),
]


def test_precision_is_up_recall_across_and_each_point_has_its_steps() -> None:
    axes = Figure().subplots()
    metric_pair_plot(PAIRS, "recall", "precision")(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert x_values(lines["no guidance"]) == [0.7, 0.8]
    assert y_values(lines["no guidance"]) == [0.4, 0.5]
    assert x_values(lines["guidance 4"]) == [0.3], "the setting without them has no point"
    found = [(label.get_text(), label.xy) for label in axes.texts if isinstance(label, Annotation)]
    assert found == [("5", (0.7, 0.4)), ("20", (0.8, 0.5)), ("20", (0.3, 0.9))]
    assert draw(metric_pair_plot(PAIRS, "recall", "precision")).startswith(b"<?xml")


def test_runs_have_a_colour_and_guidance_a_stroke() -> None:
    axes = Figure().subplots()
    guided = [one for one in RESULTS if one.sampling is not None and one.sampling.cfg == 4]
    comparison_plot({"a": RESULTS, "b": guided})(axes)
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["a, no guidance", "a, guidance 4", "b, guidance 4"]
    colours = [line.get_color() for line in lines.values()]
    assert colours[0] == colours[1] != colours[2]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", "--"]
    assert x_values(lines["b, guidance 4"]) == [1, 5, 20, 100]


def test_pairs_of_several_runs_share_their_axes() -> None:
    axes = Figure().subplots()
    comparison_pair_plot({"a": PAIRS, "b": PAIRS[:1], "c": PAIRS[3:]}, "recall", "precision")(axes)
    assert [str(line.get_label()) for line in axes.get_lines()] == [
        "a, no guidance",
        "a, guidance 4",
        "b, no guidance",
    ]


def test_losses_of_runs_reach_as_far_as_the_longest() -> None:
    axes = Figure().subplots()
    runs = {
        name: [{"step": step, "loss": 2.0} for step in range(1, last)]
        for name, last in (("a", 5), ("b", 9))
    }
    losses_plot(runs)(axes)
    assert axes.get_xlim() == (0, 8)
    named = [str(line.get_label()) for line in axes.get_lines()]
    assert [name for name in named if not name.startswith("_")] == ["a", "b"]
    legend = axes.get_legend()
    assert legend is not None
    alone = Figure().subplots()
    loss_plot(runs["a"])(alone)
    assert alone.get_legend() is None


@pytest.mark.parametrize("name", ["$x^", "$\\frac{$", "_hidden", "a$b", "<b>"])
def test_a_name_is_no_formula_and_is_in_the_legend(name: str) -> None:
    runs = {name: [{"step": step, "loss": 2.0} for step in range(1, 9)]}
    assert draw(losses_plot({**runs, "b": runs[name]})).startswith(b"<?xml")
    assert draw(comparison_plot({name: RESULTS})).startswith(b"<?xml")
    axes = Figure().subplots()
    losses_plot({**runs, "b": runs[name]})(axes)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == [name, "b"]
