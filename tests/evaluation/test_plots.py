"""Plots: what is on the axes, and the same bytes for the same results."""

from xml.etree import ElementTree

from matplotlib.figure import Figure

from evaluation.plots import accuracy_plot, distance_plot, draw, loss_plot
from tests.evaluation.test_results import result

RESULTS = [result(steps, cfg, 100 / steps + cfg) for cfg in (1.0, 4.0) for steps in (100, 20, 5, 1)]


def test_one_line_a_guidance_weight_on_logarithmic_axes() -> None:
    axes = Figure().subplots()
    distance_plot(RESULTS)(axes)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"no guidance", "guidance 4"}
    assert list(lines["guidance 4"].get_xdata()) == [1, 5, 20, 100]
    assert list(lines["guidance 4"].get_ydata()) == [104, 24, 9, 5]
    assert axes.get_ylabel() == "FD(tiny) (lower is better)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20", "100"]


def test_accuracy_is_in_percent_and_may_be_missing() -> None:
    axes = Figure().subplots()
    accuracy_plot([*RESULTS, result(2, 1.0, accuracy=None)])(axes)
    assert list(axes.get_lines()[1].get_ydata()) == [50] * 4


def test_files_are_whole_and_repeatable() -> None:
    svg = draw(distance_plot(RESULTS))
    assert svg == draw(distance_plot(RESULTS))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert draw(distance_plot(RESULTS[:1]), kind="png").startswith(b"\x89PNG")


def test_the_loss_curve_shows_every_logged_step() -> None:
    metrics = [{"step": step, "loss": 2.0 / step} for step in range(10, 200, 10)]
    axes = Figure().subplots()
    loss_plot(metrics)(axes)
    assert list(axes.get_lines()[0].get_xdata()) == list(range(10, 200, 10))
    assert draw(loss_plot(metrics)).startswith(b"<?xml")
