"""The numbers of a line, computed by hand."""

import json

import numpy as np
import pytest

from flowtrain.metrics import Interval, loss_by_time
from tests.flowtrain.metrics import values


def test_the_mean_loss_of_each_tenth_that_had_records():
    sums, counts = np.zeros(10, np.float32), np.zeros(10, np.float32)
    sums[[0, 9]], counts[[0, 9]] = (3.0, 1.0), (2, 4)
    assert loss_by_time(sums, counts) == {"loss_t0.0": 1.5, "loss_t0.9": 0.25}


def test_a_line_holds_means_over_its_steps_and_the_last_state():
    interval = Interval(8, 1.0, None)
    for loss, tenth, records in ((1.0, 3, 8), (3.0, 3, 8), (5.0, 7, 4)):
        interval.add(values(loss, tenth=tenth, records=records), None, 0.0)
    assert interval.line() == {
        "loss": 3.0,
        "grad_norm": 6.0,
        "update_norm": 0.75,
        "param_norm": 15.0,
        "learning_rate": 0.5,
        "skipped": 0,
        "loss_t0.3": 2.0,
        "loss_t0.7": 5.0,
    }
    interval.clear()
    interval.add(values(7.0), None, 0.0)
    assert interval.line()["loss"] == 7.0


def test_a_skipped_step_counts_for_the_time_alone():
    interval = Interval(8, 1.0, None)
    interval.add(values(2.0), 1.0, 0.0)
    interval.add(values(float("nan"), skipped=1, made=False), 1.0, 0.0)
    line = interval.line()
    assert (line["loss"], line["grad_norm"], line["update_norm"], line["loss_t0.0"]) == (
        2.0,
        4.0,
        0.5,
        2.0,
    )
    assert (line["skipped"], line["param_norm"], line["learning_rate"]) == (1, 10.0, 0.25)
    assert line["images_per_s"] == 8.0
    interval.clear()
    interval.add(values(float("inf"), skipped=2, made=False), 1.0, 0.0)
    assert "loss" not in interval.line()
    assert interval.line()["skipped"] == 2


def test_speed_is_that_of_the_steps_whose_time_is_known():
    interval = Interval(batch_size=6, flops_per_image=1e9, ceiling=1e10)
    interval.add(values(1.0), None, 60.0)  # compiled
    assert "images_per_s" not in interval.line()
    interval.add(values(1.0), 1.5, 0.5)
    interval.add(values(1.0), 2.5, 1.5)
    line = interval.line()
    speed = {
        name: line[name]
        for name in ("step_s", "wait_s", "compute_s", "data_wait", "images_per_s", "mfu")
    }
    assert speed == pytest.approx(
        {
            "step_s": 2.0,
            "wait_s": 1.0,
            "compute_s": 1.0,
            "data_wait": 0.5,
            "images_per_s": 3.0,
            "mfu": 0.3,
        }
    )


def test_an_interval_goes_on_from_what_was_kept_of_it():
    steps = [values(loss, tenth=tenth) for loss, tenth in ((0.1, 1), (0.7, 1), (1e-7, 8), (3, 9))]
    whole, first, second = (Interval(8, 1.0, None) for _ in range(3))
    for step in steps:
        whole.add(step, None, 0.0)
    for step in steps[:2]:
        first.add(step, 1.0, 0.5)
    kept = json.dumps(first.state())
    second.add(values(9.0), 1.0, 0.5)  # forgotten
    second.resume(json.loads(kept))
    for step in steps[2:]:
        second.add(step, None, 0.0)
    assert second.line() == whole.line(), "to the last bit, and without the seconds before"
    second.resume(None)
    second.add(steps[3], None, 0.0)
    assert second.line()["loss"] == 3.0
