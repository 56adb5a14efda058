"""Files are read back with other readers than wrote them: frames and records by hand, pictures with
Pillow.
"""

import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowtrain.sinks import (
    TENSORBOARD,
    WANDB_ID,
    JsonLines,
    TensorBoard,
    WandbSink,
    cut_metrics,
    key,
    tag,
)
from schemas.errors import UserError
from schemas.run import METRICS_NAME
from tests.flowtrain.board import PICTURE, events, scalars


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / METRICS_NAME).read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "json_key", "board_tag"),
    [
        ("train/loss", "loss", "train/loss"),
        ("train/loss_t0.0", "loss_t0.0", "loss_by_t/0.0-0.1"),
        ("train/loss_t0.9", "loss_t0.9", "loss_by_t/0.9-1.0"),
        ("val/loss_ema", "val_loss_ema", "val/loss_ema"),
        ("val/loss_t0.3", "val_loss_t0.3", "val/loss_by_t/0.3-0.4"),
        ("preview/fd", "preview_fd", "preview/fd"),
    ],
)
def test_a_name_in_json_and_on_the_board(name: str, json_key: str, board_tag: str):
    assert (key(name), tag(name)) == (json_key, board_tag)


def test_lines_after_the_restored_step_and_torn_ones_are_cut(tmp_path: Path):
    path = tmp_path / METRICS_NAME
    cut_metrics(path, 10)
    assert not path.exists()
    steps = (5, 10, 15, 12)  # the last: a number that came late
    path.write_text(
        "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in steps) + '{"step": 20, "lo'
    )
    cut_metrics(path, 15)
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 12]
    cut_metrics(path, 12)
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 12]


def test_a_damaged_line_costs_no_other(tmp_path: Path):
    path = tmp_path / METRICS_NAME
    good = [f'{{"step": {step}, "loss": 1.0}}\n'.encode() for step in (5, 10, 15, 20)]
    bad = [b'{"step": 10, "lo\xff\n', b"[1]\n", b"[" * 100_000 + b"\n"]
    path.write_bytes(b"".join([good[0], *bad, *good[1:], b'{"step": 20']))
    cut_metrics(path, 15)
    assert path.read_bytes() == b"".join([good[0], *bad, *good[1:3]])


def test_json_lines_go_on_after_a_resume_and_a_rewind(tmp_path: Path):
    killed = JsonLines(tmp_path, 0)
    for step in (2, 4, 6):
        killed.scalars(step, {"train/loss": step / 2, "train/skipped": 1})
    resumed = JsonLines(tmp_path, 4)  # the other was never closed
    resumed.scalars(6, {"train/loss": 7.0, "val/loss": float("nan")})
    resumed.rewind(2)
    resumed.scalars(4, {"val/loss": 0.5})
    assert lines(tmp_path) == [{"step": 2, "loss": 1.0, "skipped": 1}, {"step": 4, "val_loss": 0.5}]
    resumed.scalars(6, {"train/loss": float("inf"), "train/grad_norm": 1.0})
    assert lines(tmp_path)[-1] == {"step": 6, "grad_norm": 1.0}, "no Infinity: that is not JSON"
    killed.close()
    resumed.close()


def test_tensorboard_shows_every_step_once(tmp_path: Path):
    first = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": step / 2})
    first.close()
    second = TensorBoard(tmp_path, 2)  # within the same second: another file all the same
    second.scalars(3, {"train/loss": 8.0})
    second.scalars(3, {"train/loss_t0.3": 0.25})
    second.rewind(1)
    second.scalars(2, {"train/loss": 16.0})
    second.close()
    assert scalars(tmp_path) == [(1, "train/loss", 0.5), (2, "train/loss", 16.0)]
    said = [(event.step, value.tag) for event in events(tmp_path) for value in event.summary.value]
    assert (3, "loss_by_t/0.3-0.4") in said


def test_tensorboard_holds_the_picture_and_the_text(tmp_path: Path):
    board = TensorBoard(tmp_path, 0)
    board.image(4, "preview/samples", PICTURE)
    board.text(4, "run/recipe", "**digits**")
    board.close()
    seen = {
        value.tag: value
        for event in events(tmp_path)
        for value in event.summary.value
        if event.step == 4
    }
    picture = seen["preview/samples"].image
    assert (picture.height, picture.width, picture.colorspace) == PICTURE.shape
    decoded = Image.open(io.BytesIO(picture.encoded_image_string))
    assert decoded.format == "PNG"
    np.testing.assert_array_equal(np.asarray(decoded), PICTURE)
    assert seen["run/recipe/text_summary"].tensor.string_val == [b"**digits**"]


NO_ROOM = (
    r": the metrics could not be written \(No space left on device\); the checkpoints are whole; "
    r"make room and"
)


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard])
def test_a_full_disk_is_one_line_for_whoever_tells_more(
    small_disk: Callable[[str], Path],
    kind: type[JsonLines] | type[TensorBoard],
    capfd: pytest.CaptureFixture[str],
):
    """tensorboardX's own writer ends with a traceback in its thread, and another one when the
    process ends.
    """
    disk, threads = small_disk("size=16k"), threading.active_count()
    sink = kind(disk, 0)

    def tell() -> None:
        for step in range(1000):
            sink.scalars(step, {"train/loss": float(step)})

    for attempt in (tell, tell, sink.close):
        with pytest.raises(UserError, match=re.escape(str(disk)) + NO_ROOM):
            attempt()
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_a_file_of_events_that_cannot_begin_is_closed(small_disk: Callable[[str], Path]):
    disk = small_disk("size=16k")
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(512))
    (disk / TENSORBOARD).mkdir()
    with pytest.raises(UserError, match=NO_ROOM) as caught:
        TensorBoard(disk, 0)
    (path,) = (disk / TENSORBOARD).iterdir()
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert path not in links
    assert str(disk) in str(caught.value), "what it holds was alive until here"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a run's file: a header of 7 bytes, then LevelDB's log format, whose blocks are
    of 32 KiB.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := -at % 32768) and room < 7:
            at += room
        _, length, part = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or last
            yield wandb_internal_pb2.Record.FromString(whole)  # pyright: ignore[reportAttributeAccessIssue]
            whole = b""


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """What was logged: one dict a call, nested names joined by dots."""
    return [
        {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.fixture
def offline(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No network, no login, no reports of errors, and no service that outlives the test."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("offline")
def test_wandb_holds_numbers_and_pictures_under_one_id(tmp_path: Path):
    first = WandbSink("tests", tmp_path, {"model": {"depth": 2}})
    first.scalars(5, {"train/loss": 0.5, "train/loss_t0.3": 0.25})
    first.image(5, "preview/samples", PICTURE)
    first.scalars(3, {"train/loss": 0.75})  # after a rewind
    first.text(5, "run/recipe", "digits")
    first.close()
    time.sleep(1)  # wandb names its folders by the second
    second = WandbSink("tests", tmp_path, {"model": {"depth": 2}})
    second.scalars(6, {"val/loss": 0.125})
    second.close()
    run_id = (tmp_path / WANDB_ID).read_text().strip()
    before, after = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    logged = wandb_history(before)
    assert [line["step"] for line in logged] == [5, 5, 3], "nothing is dropped"
    assert (logged[0]["train/loss"], logged[0]["loss_by_t/0.3-0.4"], logged[2]["train/loss"]) == (
        0.5,
        0.25,
        0.75,
    )
    picture = before.parent / "files" / logged[1]["preview/samples.path"]
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), PICTURE)
    # wandb's own process writes, and on a busy machine it may outlive `finish`
    deadline = time.monotonic() + 60
    while not wandb_history(after) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [(line["step"], line["val/loss"]) for line in wandb_history(after)] == [(6, 0.125)]
    runs = [
        record.run
        for path in (before, after)
        for record in wandb_records(path)
        if record.HasField("run")
    ]
    assert {(run.project, run.run_id, run.resume) for run in runs} == {("tests", run_id, True)}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["model"] == {"depth": 2}
    summary = [
        item for r in wandb_records(before) if r.HasField("summary") for item in r.summary.update
    ]
    assert any(json.loads(item.value_json) == "digits" for item in summary)


@pytest.mark.usefixtures("offline")
def test_without_a_login_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"^wandb: .*API key.*WANDB_MODE=offline") as caught:
        WandbSink("tests", tmp_path, {})
    assert "\n" not in str(caught.value)


def test_without_wandb_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"install flowtrain\[wandb\]") as caught:
        WandbSink("tests", tmp_path, {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "no id is left of a run that never was"


def test_wandb_is_imported_only_when_asked_for():
    code = "import sys, flowtrain.sinks; sys.exit('wandb' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode
        == 0
    )
