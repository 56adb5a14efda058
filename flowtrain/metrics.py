"""What a run reports about itself: JSON lines, TensorBoard files, and a progress bar."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter
from tqdm import tqdm

from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.run import METRICS_NAME

TENSORBOARD = "tensorboard"


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line torn by a kill, so that a resumed curve holds no step twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    write_atomic(path, "".join(f"{line}\n" for line in kept))


class MetricsWriter:
    """Appends one object a line to metrics.jsonl and the same numbers to TensorBoard, after `start_step`."""

    def __init__(self, workdir: Path, start_step: int):
        cut_metrics(workdir / METRICS_NAME, start_step)
        self._lines = open(workdir / METRICS_NAME, "a")  # noqa: SIM115  (closed by __exit__)
        self._board = SummaryWriter(str(workdir / TENSORBOARD), purge_step=start_step + 1, flush_secs=10)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line for `step`, on disk when this returns."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()


class Progress:
    """Collects the metrics of each step, averages them over `log_every` steps, and shows them.

    `push` takes the arrays of a step that has only been dispatched and reads those of the step before, so the device
    always has work queued. The clock starts when the first step is done: compilation is not throughput.
    """

    def __init__(self, writer: MetricsWriter, *, start: int, steps: int, batch_size: int, log_every: int):
        self._writer, self._batch_size, self._log_every = writer, batch_size, log_every
        self._pending: tuple[int, Mapping[str, object]] | None = None
        slow = not sys.stderr.isatty()  # a log file needs no bar that moves
        self._bar = tqdm(initial=start, total=steps, unit="step", desc="compile", mininterval=20 if slow else 0.2)
        self._reset(None)

    def push(self, step: int, metrics: Mapping[str, object], waited: float) -> None:
        """Metrics of the dispatched `step`; `waited` is the seconds that the loop stood waiting for its batch."""
        self._waited += waited
        before, self._pending = self._pending, (step, metrics)
        if before is not None:
            self._take(*before)

    def flush(self) -> None:
        """Read what is pending. After this every loss up to the last step is known to be finite."""
        before, self._pending = self._pending, None
        if before is not None:
            self._take(*before)

    def close(self) -> None:
        """End the bar's line."""
        self._bar.close()

    def _reset(self, now: float | None) -> None:
        self._since, self._waited, self._count, self._timed = now, 0.0, 0, 0
        self._sums = {"loss": 0.0, "grad_norm": 0.0}

    def _take(self, step: int, metrics: Mapping[str, object]) -> None:
        values = {name: float(value) for name, value in metrics.items()}  # type: ignore[arg-type]
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                f"step {step}: the loss is no longer finite (loss {values['loss']}, gradient {values['grad_norm']}); "
                "train again in a new directory with a lower optimizer.learning_rate, a longer optimizer.warmup_steps "
                "or optimizer.clip_norm=1"
            )
        self._count += 1
        for name in self._sums:
            self._sums[name] += values[name]
        if self._since is None:
            self._since, self._waited = time.perf_counter(), 0.0
            self._bar.unpause()  # else the bar's time left believes in compiling at every step
            self._bar.set_description("train", refresh=False)
        else:
            self._timed += 1
        self._bar.update(1)
        if step % self._log_every == 0 or step == self._bar.total:
            self._report(step, values)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        line = dict(values) | {name: total / self._count for name, total in self._sums.items()}
        seconds = now - (self._since or now)
        if self._timed and seconds > 0:
            line |= {"images_per_s": self._timed * self._batch_size / seconds, "data_wait": self._waited / seconds}
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", img_s=f"{line['images_per_s']:.0f}", refresh=False)
        self._writer.write(step, line)
        self._reset(now)
