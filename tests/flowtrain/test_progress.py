"""The loop's side of it: what is read when, what is averaged, what a pause and a rewind leave, what
a person sees.
"""

import io
import json
import os
import pty
import re
import struct
import sys
import termios
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain import progress as module
from flowtrain.metrics import Interval
from flowtrain.progress import Progress, Stopwatch, status
from flowtrain.sinks import JsonLines, Sink, TensorBoard
from schemas.run import METRICS_NAME
from tests.flowtrain.board import PICTURE, events, scalars
from tests.flowtrain.metrics import values


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / METRICS_NAME).read_text().splitlines()]


def made(
    *sinks: Sink,
    start: int = 0,
    steps: int = 100,
    log_every: int = 2,
    flops: float = 1.0,
    ceiling: float | None = None,
) -> Progress:
    return Progress(
        sinks,
        Interval(4, flops, ceiling),
        start=start,
        steps=steps,
        log_every=log_every,
    )


def on_device(loss: float, **more: Any) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, values(loss, **more))


def test_push_reads_the_step_before_and_flush_the_last_one(tmp_path: Path):
    progress = made(JsonLines(tmp_path, 0))
    assert progress.push(1, on_device(1.0), 0.0) is None
    before = progress.push(2, on_device(float("nan"), made=False, skipped=1), 0.0)
    assert before is not None
    assert (before["step"], float(before["loss"]), int(before["streak"])) == (1, 1.0, 0)
    assert isinstance(before["time_loss"], np.ndarray)
    last = progress.flush()
    assert last is not None
    assert (last["step"], int(last["streak"]), int(last["skipped"])) == (2, 1, 1)
    assert progress.flush() is None
    progress.close()
    assert [(line["step"], line["loss"], line["skipped"]) for line in lines(tmp_path)] == [
        (2, 1.0, 1)
    ]


def test_losses_are_averaged_between_lines_and_appended_after_a_resume(tmp_path: Path):
    for start, losses in ((0, (1.0, 3.0, 5.0, 7.0)), (2, (9.0, 11.0, 13.0))):
        progress = made(JsonLines(tmp_path, start), start=start, steps=start + len(losses))
        for step, loss in enumerate(losses, start=start + 1):
            progress.push(step, on_device(loss), 0.0)
        progress.flush()
        progress.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 2.0),
        (4, 10.0),
        (5, 13.0),
    ]
    assert lines(tmp_path)[-1]["images_per_s"] > 0


class Clock:
    """Stands in for the module `time` where seconds are to be exact."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_time_is_counted_from_the_first_step_on_and_not_in_pauses(tmp_path: Path, clock: Clock):
    progress = made(JsonLines(tmp_path, 0), log_every=3, flops=1e6, ceiling=1e8)
    progress.push(1, on_device(1.0), 7.0)
    clock.now += 60  # compiles
    progress.push(2, on_device(1.0), 7.0)  # reads step 1, after the wait for step 2
    with progress.paused("validate"):
        clock.now += 1000
        with progress.paused("preview"):
            clock.now += 1000
        clock.now += 1000
    clock.now += 2
    progress.push(3, on_device(1.0), 0.5)
    clock.now += 4
    progress.flush()
    progress.close()
    (line,) = lines(tmp_path)
    speed = {
        name: line[name]
        for name in ("step_s", "wait_s", "compute_s", "data_wait", "images_per_s", "mfu")
    }
    assert speed == pytest.approx(
        {
            "step_s": 3,
            "wait_s": 0.25,
            "compute_s": 2.75,
            "data_wait": 1 / 12,
            "images_per_s": 4 / 3,
            "mfu": 1 / 75,
        }
    )


def test_a_pause_begins_when_the_step_in_flight_is_done():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda _, y: jnp.sin(y @ x), x).sum())
    x = jnp.full((500, 500), 1e-3)
    slow(x).block_until_ready()
    progress = made()
    loss = slow(x)
    progress.push(1, on_device(1.0) | {"loss": loss}, 0.0)
    with progress.paused():
        assert loss.is_ready()
    progress.close()


class Late:
    """A loss in flight: whoever waits for it first sees five seconds of the clock go by."""

    def __init__(self, clock: Clock):
        self._clock, self._left = clock, 5.0

    def block_until_ready(self) -> "Late":
        self._clock.now += self._left
        self._left = 0.0
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.block_until_ready()
        return np.ones((), np.float32)


def test_a_step_in_flight_is_not_hidden_in_a_pause(tmp_path: Path, clock: Clock):
    progress = made(JsonLines(tmp_path, 0), log_every=2)
    progress.push(1, on_device(1.0), 0.0)
    late = Late(clock)
    progress.push(2, on_device(1.0) | {"loss": late}, 0.0)
    with progress.paused():
        clock.now += 1000
        late.block_until_ready()  # it would end meanwhile
    progress.flush()
    progress.close()
    assert lines(tmp_path)[0]["step_s"] == 5


def test_a_stopwatch_holds_laps_in_pauses(clock: Clock):
    watch = Stopwatch()
    with watch.paused():
        clock.now += 1
        assert watch.lap() is None
        clock.now += 10
    clock.now += 100
    with watch.paused():
        clock.now += 1000
        assert watch.lap() == 100
        clock.now += 10000
    clock.now += 5
    assert watch.lap() == 5
    clock.now += 7
    watch.reset()
    assert watch.lap() is None


def test_after_a_rewind_no_step_is_twice(tmp_path: Path):
    progress = made(JsonLines(tmp_path, 0), TensorBoard(tmp_path, 0))
    for step in range(1, 7):
        progress.push(step, on_device(float(step)), 0.0)
    progress.rewind(3)  # 6 is pending, 5 is the first half of an interval
    assert [line["step"] for line in lines(tmp_path)] == [2]
    for step in (4, 5, 6):
        before = progress.push(step, on_device(10.0 * step), 0.0)
        assert (before and before["step"]) == (step - 1 if step > 4 else None)
    progress.flush()
    progress.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 1.5),
        (4, 40.0),
        (6, 55.0),
    ]
    shown = [(step, value) for step, tag, value in scalars(tmp_path) if tag == "train/loss"]
    assert shown == [(2, 1.5), (4, 40.0), (6, 55.0)]


def test_validation_and_previews_reach_every_sink_under_their_names(tmp_path: Path):
    progress = made(JsonLines(tmp_path, 0), TensorBoard(tmp_path, 0))
    progress.validation(10, {"loss": np.float32(0.5), "loss_ema": 0.25, "loss_t0.3": 0.125})
    progress.scalars(10, {"preview/fd": jnp.float32(2.0)})
    progress.image(10, "preview/samples", PICTURE)
    progress.close()
    assert lines(tmp_path) == [
        {"step": 10, "val_loss": 0.5, "val_loss_ema": 0.25, "val_loss_t0.3": 0.125},
        {"step": 10, "preview_fd": 2.0},
    ]
    assert scalars(tmp_path) == [
        (10, "val/loss", 0.5),
        (10, "val/loss_ema", 0.25),
        (10, "val/loss_by_t/0.3-0.4", 0.125),
        (10, "preview/fd", 2.0),
    ]
    pictures = [
        value.tag
        for event in events(tmp_path)
        for value in event.summary.value
        if value.HasField("image")
    ]
    assert pictures == ["preview/samples"]


def test_every_sink_is_closed_when_one_fails(tmp_path: Path):
    class Full(JsonLines):
        def close(self) -> None:
            super().close()
            raise OSError("no space left")

    sinks = JsonLines(tmp_path, 0), Full(tmp_path, 0), JsonLines(tmp_path, 0)
    with pytest.raises(OSError, match="no space left"):
        made(*sinks).close()
    for sink in sinks:
        with pytest.raises(ValueError, match="closed file"):
            sink.scalars(1, {})


def test_the_status_of_a_line():
    line = {"loss": 0.512, "images_per_s": 812.4, "mfu": 0.412, "step_s": 0.2, "skipped": 0}
    assert status(line, 3755) == "loss 0.512 img/s 812 mfu 41% left 0:12:31"
    assert status({"skipped": 3}, 5) == "skipped 3"
    assert (
        status({"loss": 1.0, "images_per_s": 0.512, "step_s": 2.0}, 0)
        == "loss 1 img/s 0.51 left 0:00:00"
    )


def test_without_a_terminal_there_are_plain_lines_and_not_too_many(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = made(steps=15)
    for step in range(1, 16):
        progress.push(step, on_device(float(step)), 0.0)
        clock.now += 6
    progress.note("a note")
    progress.flush()
    progress.close()
    assert stderr.getvalue().splitlines() == [
        "step 2/15 loss 1.5 img/s 0.67 left 0:01:18",
        "step 6/15 loss 5.5 img/s 0.67 left 0:00:54",  # 4 was 12 seconds after 2
        "step 10/15 loss 9.5 img/s 0.67 left 0:00:30",
        "step 14/15 loss 13.5 img/s 0.67 left 0:00:06",
        "a note",
        "step 15/15 loss 15 img/s 0.67 left 0:00:00",
    ]


def drawn_on_a_terminal(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of that size was told, cut at the ends of lines and where the cursor went
    back to the start.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = made(start=2, steps=8)
        for step in (3, 4, 5, 6):
            progress.push(step, on_device(2.0), 0.0)
        progress.flush()
        with progress.paused("validate"):
            pass
        progress.note("a note")
        progress.rewind(4)
        progress.close()
        os.set_blocking(ours, False)
        seen = b""
        with suppress(BlockingIOError):
            while piece := os.read(ours, 65536):
                seen += piece
    os.close(ours)
    plain = re.sub(r"\x1b\[\w", "", seen.decode())
    return [part.strip() for part in re.split(r"[\r\n]+", plain) if part.strip()]


def test_on_a_terminal_there_is_one_bar(monkeypatch: pytest.MonkeyPatch):
    drawn = drawn_on_a_terminal(24, 120, monkeypatch)
    assert re.fullmatch(r"compile +25%\|.*\| 2/8", drawn[0])
    assert any(
        re.fullmatch(r"validate +75%\|.*\| 6/8, loss 2 img/s \d+ left 0:00:0\d", part)
        for part in drawn
    )
    assert drawn.count("a note") == 1
    assert re.match(r"train +50%\|.*\| 4/8", drawn[-1])


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 120)])
def test_a_terminal_without_a_size_gets_plain_lines(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
):
    first, *_ = drawn_on_a_terminal(rows, columns, monkeypatch)
    assert first.startswith("step 4/8 loss 2 ")
