"""Event files, read without TensorBoard."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto import event_pb2

from flowtrain.sinks import TENSORBOARD

Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
START: Any = event_pb2.SessionLog.START  # pyright: ignore[reportAttributeAccessIssue]
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def events(workdir: Path) -> Iterator[Any]:
    """The events of all files of a run, in the order of their names: TFRecord frames of 8 + 4 + n +
    4 bytes.
    """
    for path in sorted((workdir / TENSORBOARD).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def scalars(workdir: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: a session that starts at a step makes what was said of it and of
    later ones void.
    """
    shown: list[tuple[int, str, float]] = []
    for event in events(workdir):
        if event.session_log.status == START:
            shown = [point for point in shown if point[0] < event.step]
        shown += [
            (event.step, value.tag, value.simple_value)
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
    return shown
