"""The metrics file after a resume, and a loss that is no number."""

import json
from pathlib import Path

import pytest

from flowtrain.metrics import MetricsWriter, Progress, cut_metrics
from schemas.errors import UserError
from schemas.run import METRICS_NAME


def _steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / METRICS_NAME).read_text().splitlines()]


def test_lines_after_the_restored_step_and_torn_ones_are_cut(tmp_path: Path):
    path = tmp_path / METRICS_NAME
    cut_metrics(path, 10)
    assert not path.exists()
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (5, 10, 15)) + '{"step": 20, "lo')
    cut_metrics(path, 15)
    assert _steps(tmp_path) == [5, 10, 15]
    cut_metrics(path, 12)
    assert _steps(tmp_path) == [5, 10]


def _push(tmp_path: Path, losses: list[float], *, start: int = 0) -> None:
    with MetricsWriter(tmp_path, start) as writer:
        progress = Progress(writer, start=start, steps=start + len(losses), batch_size=4, log_every=2)
        try:
            for step, loss in enumerate(losses, start=start + 1):
                progress.push(step, {"loss": loss, "grad_norm": 1.0}, 0.0)
            progress.flush()
        finally:
            progress.close()


def test_losses_are_averaged_between_lines_and_appended_after_a_resume(tmp_path: Path):
    _push(tmp_path, [1.0, 3.0, 5.0, 7.0])
    _push(tmp_path, [9.0, 11.0, 13.0], start=2)
    lines = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 10.0), (5, 13.0)]
    assert lines[-1]["images_per_s"] > 0
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path: Path):
    with pytest.raises(UserError, match=r"step 3: the loss is no longer finite .*learning_rate"):
        _push(tmp_path, [1.0, 1.0, float("nan"), 1.0])
    assert _steps(tmp_path) == [2]
