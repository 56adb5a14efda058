"""How a run is watched: a bar or plain lines on stderr, and the same numbers to the sinks."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, SupportsFloat, TextIO

import jax
import numpy as np
from tqdm import tqdm

from flowtrain.metrics import Interval
from flowtrain.sinks import Sink

LINE_SECONDS = 20.0  # between two lines where stderr is no terminal


class Progress:
    """Gathers the metrics of each step, averages them over `log_every` steps, and shows them.

    `push` takes the arrays of a step that has only been dispatched and reads those of the step
    before, so the device always has work queued. The clock starts when the first step is done:
    compilation is not throughput.

    Args:
        sinks: take every line; closed by `close`.
        interval: an empty one, which gathers the steps between two lines.
        start: steps made before.
        steps: the last step of the run.
        log_every: steps between two lines.
        shown: whether stderr tells; of several processes one does.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        interval: Interval,
        *,
        start: int,
        steps: int,
        log_every: int,
        shown: bool = True,
    ):
        self._sinks = sinks
        self._steps = steps
        self._log_every = log_every
        self._interval = interval
        self._watch = Stopwatch()
        self._line: dict[str, float] = {}  # the last one
        self._waited = 0.0
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._display = _display(start, steps, shown)

    def push(self, step: int, metrics: Mapping[str, Any], waited: float) -> dict[str, Any] | None:
        """Take the metrics of the dispatched `step` and read those of the step before.

        Args:
            step: its number; the first is start + 1.
            metrics: device arrays: float32 scalars `loss`, `grad_norm`, `update_norm`,
                `param_norm`, `learning_rate`, `finite`; int32 scalars `skipped`, `streak`; (10,)
                `time_loss`, `time_count`.
            waited: seconds that the loop stood waiting for the batch of this step.

        Returns:
            The same names as NumPy values, and `step`, of the step that was read; None when there
            was none.
        """
        self._waited += waited
        before, self._pending = self._pending, (step, metrics)
        return self._read(*before) if before else None

    def interval(self) -> dict[str, Any]:
        """What the next line will say of the steps that were read: `Interval.state`."""
        return self._interval.state()

    def resume(self, interval: Mapping[str, Any] | None) -> None:
        """Go on in the midst of one: what `interval` was; None: an earlier release kept none."""
        self._interval.resume(interval)

    def flush(self) -> dict[str, Any] | None:
        """Read the step that is pending; returns what `push` returns."""
        before, self._pending = self._pending, None
        return self._read(*before) if before else None

    def validation(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Losses of the validation after `step`: `loss` becomes `val_loss` in the JSON lines."""
        self.scalars(step, {f"val/{name}": value for name, value in values.items()})

    def text(self, step: int, name: str, text: str) -> None:
        """Words under a name, such as the recipe."""
        for sink in self._sinks:
            sink.text(step, name, text)

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Numbers by `group/name`, such as `preview/fd` (`preview_fd` in the JSON lines)."""
        plain = {
            name: value if isinstance(value, int) else float(value)
            for name, value in values.items()
        }
        for sink in self._sinks:
            sink.scalars(step, plain)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An (H, W, 3) uint8 picture under a name `group/name`, such as `preview/samples`."""
        for sink in self._sinks:
            sink.image(step, name, image)

    def note(self, text: str) -> None:
        """A line of its own on stderr, above the bar."""
        self._display.note(text)

    @contextlib.contextmanager
    def paused(self, doing: str = "pause") -> Iterator[None]:
        """Around work between steps, which the bar calls `doing`; its time is not counted.

        What is pending is waited for, so that no step hides in the pause, and is read later as
        ever.
        """
        if self._pending:
            jax.block_until_ready(self._pending[1])
        self._display.describe(doing)
        try:
            with self._watch.paused():
                yield
        finally:
            self._display.describe(None)

    def rewind(self, step: int) -> None:
        """Go back to `step`: drop what is pending; bar and sinks forget later steps."""
        self._pending, self._waited, self._line = None, 0.0, {}
        self._interval.clear()
        self._watch.reset()
        for sink in self._sinks:
            sink.rewind(step)
        self._display.rewind(step)

    def close(self) -> None:
        """End the bar's line and close the sinks, all of them also if one fails."""
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)
            stack.callback(self._display.close)

    def _read(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        values = jax.device_get(dict(metrics))  # waits for the step
        self._interval.add(values, self._watch.lap(), self._waited)
        self._waited = 0.0
        logged = step % self._log_every == 0 or step == self._steps
        if logged:
            self._line = self._interval.line()
            self._interval.clear()
            self.scalars(step, {f"train/{name}": value for name, value in self._line.items()})
        line = self._line or self._interval.line()
        self._display.show(step, status(line, self._steps - step), logged)
        return {"step": step, **values}


def status(line: Mapping[str, float], left: int) -> str:
    """`loss 0.512 img/s 812 mfu 41% left 0:12:31` with `left` steps to go, as far as known."""
    parts = [f"loss {line['loss']:.4g}"] if "loss" in line else []
    if "images_per_s" in line:
        rate = line["images_per_s"]
        parts.append(f"img/s {rate:.0f}" if rate >= 10 else f"img/s {rate:.2g}")
    if "mfu" in line:
        parts.append(f"mfu {line['mfu']:.0%}")
    if line.get("skipped"):
        parts.append(f"skipped {line['skipped']:.0f}")
    if "step_s" in line:
        parts.append(f"left {timedelta(seconds=round(left * line['step_s']))}")
    return " ".join(parts)


class Stopwatch:
    """Seconds between laps, without pauses. The first lap starts it."""

    def __init__(self) -> None:
        self._pauses = 0
        self.reset()

    def reset(self) -> None:
        """Stop until the next lap."""
        self._running, self._seconds, self._since = False, 0.0, 0.0

    def lap(self) -> float | None:
        """Seconds since the lap before; None at the first."""
        now = time.perf_counter()
        seconds = None
        if self._running:
            since = 0.0 if self._pauses else now - self._since
            seconds = self._seconds + since
        self._running, self._seconds, self._since = True, 0.0, now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stands still in the context; pauses may be nested, and hold laps."""
        if self._running and not self._pauses:
            self._seconds += time.perf_counter() - self._since
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._since = time.perf_counter()


def _has_room(stream: TextIO) -> bool:
    """Whether a bar can be drawn: on a terminal that has a size (some containers' have none)."""
    return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 1


class _Display(Protocol):
    """What a person sees of the steps."""

    def __init__(self, start: int, steps: int): ...
    def show(self, step: int, status: str, logged: bool) -> None: ...
    def describe(self, doing: str | None) -> None: ...
    def note(self, text: str) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class _Bar:
    """On a terminal. Rate and time left are in the status: those of tqdm would count pauses."""

    _FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"

    def __init__(self, start: int, steps: int):
        self._usual = "compile"  # until a step is done
        self._bar = tqdm(
            initial=start,
            total=steps,
            desc=self._usual,
            file=sys.stderr,
            mininterval=0.2,
            dynamic_ncols=True,
            bar_format=self._FORMAT,
        )

    def show(self, step: int, status: str, logged: bool) -> None:
        self._usual = "train"
        self._bar.set_description_str(self._usual, refresh=False)
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(step - self._bar.n)

    def describe(self, doing: str | None) -> None:
        self._bar.set_description_str(doing or self._usual)

    def note(self, text: str) -> None:
        _write(text)

    def rewind(self, step: int) -> None:
        self._bar.n = self._bar.last_print_n = step
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """In a file or a pipe: the sinks' lines, at least 20 seconds apart, and always the last."""

    def __init__(self, start: int, steps: int):
        self._steps, self._next = steps, float("-inf")

    def show(self, step: int, status: str, logged: bool) -> None:
        now = time.monotonic()
        if logged and (now >= self._next or step == self._steps):
            _write(f"step {step}/{self._steps} {status}")
            self._next = now + LINE_SECONDS

    def describe(self, doing: str | None) -> None:
        """A line a pause would be noise."""

    def note(self, text: str) -> None:
        _write(text)

    def rewind(self, step: int) -> None:
        """The next line tells the step."""

    def close(self) -> None:
        """Nothing is held."""


class _Silent:
    """In every process of a run but the main one, which alone writes to stderr."""

    def __init__(self, start: int, steps: int):
        """Nothing is shown."""

    def show(self, step: int, status: str, logged: bool) -> None:
        """See the class."""

    def describe(self, doing: str | None) -> None:
        """See the class."""

    def note(self, text: str) -> None:
        """See the class."""

    def rewind(self, step: int) -> None:
        """See the class."""

    def close(self) -> None:
        """See the class."""


def _display(start: int, steps: int, shown: bool) -> _Display:
    """A bar on a terminal, lines elsewhere, and neither where stderr is another process's."""
    if not shown:
        return _Silent(start, steps)
    if _has_room(sys.stderr):
        return _Bar(start, steps)
    return _Lines(start, steps)


def _write(text: str) -> None:
    """A line on stderr that does not tear a bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
