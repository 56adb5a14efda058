"""Where the numbers and pictures of a run go: JSON lines, TensorBoard files, Weights & Biases.

A name is `group/name`: `train/loss`, `val/loss_ema`, `preview/samples`. `..._t0.3` is the part of a
number that belongs to t in [0.3, 0.4).
"""

import json
import math
import re
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import text as text_summary

from flowtrain.state.faults import storage_faults
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.json_text import parse_json
from schemas.png import encode_png
from schemas.run import METRICS_NAME

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id"

_Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
_Session: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
_Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
_BY_TIME = re.compile(r"(?P<name>.*)_t0\.(?P<tenth>\d)")


class Sink(Protocol):
    """Takes what a run reports. One made for a resumed run goes on after the step that it is told.

    Those that write to the work directory raise a `UserError` when its disk is full.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """`image` is (H, W, 3) uint8 RGB."""
        ...

    def text(self, step: int, name: str, text: str) -> None: ...
    def rewind(self, step: int) -> None:
        """The run went back to `step`: what was said of later ones no longer holds."""
        ...

    def close(self) -> None: ...


def key(name: str) -> str:
    """The name in a JSON line: `train/loss` is `loss`, `val/loss` is `val_loss`."""
    return name.removeprefix("train/").replace("/", "_")


def tag(name: str) -> str:
    """A name in TensorBoard and wandb, grouped by what stands before the first slash.

    The ten parts of the training loss are a group of their own: `train/loss_t0.3` is
    `loss_by_t/0.3-0.4`, and `val/loss_t0.3` is `val/loss_by_t/0.3-0.4`.
    """
    part = _BY_TIME.fullmatch(name)
    if part is None:
        return name
    tenth = int(part["tenth"])
    return f"{part['name'].removeprefix('train/')}_by_t/{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}"


def _faults(workdir: Path) -> AbstractContextManager[None]:
    return storage_faults(
        f"{workdir}: the metrics could not be written", "the checkpoints are whole"
    )


def cut_metrics(path: Path, step: int) -> None:
    """Drop lines after `step` and a torn last line, so that a resumed curve has each once."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # without a last one that a kill has cut
    write_atomic(path, b"".join(line + b"\n" for line in lines if _stays(line, step)))


def _stays(line: bytes, step: int) -> bool:
    """Whether a line is of a step up to this one. One that cannot be parsed stays."""
    try:
        return parse_json(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return True


class JsonLines:
    """One object a line in metrics.jsonl; numbers that are not finite are left out."""

    def __init__(self, workdir: Path, start: int):
        self._workdir = workdir
        self._open(start)

    def _open(self, step: int) -> None:
        path = self._workdir / METRICS_NAME
        with _faults(self._workdir):
            cut_metrics(path, step)
            self._lines = open(path, "a")  # noqa: SIM115  (closed by close)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line for `step`, in the file when this returns."""
        finite = {key(name): value for name, value in values.items() if math.isfinite(value)}
        with _faults(self._workdir):
            self._lines.write(json.dumps({"step": step, **finite}) + "\n")
            self._lines.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Left out."""

    def text(self, step: int, name: str, text: str) -> None:
        """Left out."""

    def rewind(self, step: int) -> None:
        """Cut the lines after `step`."""
        self.close()
        self._open(step)

    def close(self) -> None:
        with _faults(self._workdir):  # once more what could not be written
            self._lines.close()


class TensorBoard:
    """Event files in WORKDIR/tensorboard; what was told is in the file when a call returns.

    tensorboardX has the protocol buffers and the frames of records. Its writer of events is left
    out: that writes from a thread, and when the disk is full the thread ends with a traceback, and
    whoever tells more waits for it for ever.
    """

    def __init__(self, workdir: Path, start: int):
        self._workdir = workdir
        self._open(start)

    def _open(self, step: int) -> None:
        # TensorBoard reads files in the order of their names. The first part of a name is looked
        # for by it, and the last tells apart those of one second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        folder = self._workdir / TENSORBOARD
        with _faults(self._workdir):
            folder.mkdir(exist_ok=True)
            (folder / name).touch(exist_ok=False)  # which the writer would empty
            # Absolute: what begins with "s3:" or "gs:" would be taken for a URL.
            self._records = _Records(str((folder / name).absolute()))
        try:
            self._write(file_version="brain.Event:2")
            # It forgets what older files say of this step and later.
            self._write(step=step + 1, session_log=_Session(status=_Session.START))
        except UserError:
            self.close()
            raise

    def _write(self, **fields: Any) -> None:
        """One event as a record of the file."""
        data = _Event(wall_time=time.time(), **fields).SerializeToString()
        with _faults(self._workdir):
            self._records.write(data)
            self._records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        points = [
            _Summary.Value(tag=tag(name), simple_value=value) for name, value in values.items()
        ]
        self._write(step=step, summary=_Summary(value=points))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        height, width, channels = image.shape
        # Not by tensorboardX, which needs Pillow for it: a trainer machine may lack that.
        picture = _Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encode_png(image)
        )
        self._write(
            step=step, summary=_Summary(value=[_Summary.Value(tag=tag(name), image=picture)])
        )

    def text(self, step: int, name: str, text: str) -> None:
        """`text` is shown as Markdown."""
        self._write(step=step, summary=text_summary(tag(name), text))

    def rewind(self, step: int) -> None:
        """Go on in a new file, which says that what came after `step` is void."""
        self.close()
        self._open(step)

    def close(self) -> None:
        with _faults(self._workdir):  # once more what could not be written
            self._records.close()


class _Records(RecordWriter):
    """TFRecord frames in a local file.

    A flush hands them to the system and does not wait for the disk, which takes milliseconds and
    would stop the training loop at every line. It reaches for a private attribute, so the version
    of tensorboardX is bounded in pyproject.toml.
    """

    def flush(self) -> None:
        self._writer.flush()  # pyright: ignore[reportOptionalMemberAccess]


class WandbSink:
    """A run at Weights & Biases, the same one after a resume: its id is kept in WORKDIR/wandb-id.

    Where it goes is wandb's own business: `wandb login`, WANDB_MODE=offline, WANDB_ENTITY and so
    on. Every chart is drawn over `step`, a number among the others: wandb's own step drops what is
    logged after a rewind, and cannot take back what was logged before it, so the steps that were
    made twice are seen twice.

    Args:
        project: name of the project.
        workdir: of the run; wandb writes to WORKDIR/wandb.
        config: what the run is filed under: the recipe.

    Raises:
        UserError: wandb is not installed, not logged in, or not reachable.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UserError(
                "wandb is not installed; install flowtrain[wandb] (pip install "
                "'flowtrain[wandb]'), or train without it"
            ) from None
        self._picture = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(workdir / WANDB_ID),
                resume="allow",
                name=workdir.resolve().name,
                dir=str(workdir),
                config=dict(config),
                settings=wandb.Settings(console="off"),  # else it records every move of the bar
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline and `wandb "
                "sync` later"
            ) from None
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {tag(name): value for name, value in values.items()})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({"step": step, tag(name): self._picture(image)})

    def text(self, step: int, name: str, text: str) -> None:
        """Kept in the run's summary: the last one of a name."""
        self._run.summary[tag(name)] = text

    def rewind(self, step: int) -> None:
        """Without effect: wandb keeps both."""

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path) -> str:
    """The id in the file, or a new one, which is written there first."""
    if not path.exists():
        write_atomic(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()
