"""Errors that a machine really raises, and what a user reads of them. Those of orbax: see
test_folders.py.
"""

import errno
import logging
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.state.faults import check_room, damage_faults, memory_faults, silence, storage_faults
from schemas.errors import UserError

LACKING = {
    "device": lambda: jnp.zeros((1 << 44,)).block_until_ready(),
    "in a step": lambda: jax.jit(lambda x: x[:, None] * x[None, :])(
        jnp.zeros(1 << 23)
    ).block_until_ready(),
    "to the device": lambda: jax.device_put(np.broadcast_to(np.float32(0), (1 << 44,))),
    "host": lambda: np.ones(1 << 48),
}


def _full(write: Callable[[Path], object], path: Path) -> str:
    with (
        pytest.raises(UserError) as caught,
        storage_faults("run: nothing saved", "the rest is whole"),
    ):
        write(path)
    assert isinstance(caught.value.__cause__, OSError)
    return str(caught.value)


def test_a_disk_without_room_is_one_line(small_disk: Callable[[str], Path]):
    path = small_disk("size=40k") / "file"
    assert _full(lambda path: path.write_bytes(bytes(100_000)), path) == (
        "run: nothing saved (No space left on device); the rest is whole; make room and repeat the "
        "command"
    )


def test_a_file_that_may_not_grow_is_one_line(
    tmp_path: Path, small_files: Callable[[int], AbstractContextManager[None]]
):
    def write(path: Path) -> None:
        with small_files(1000):
            path.write_bytes(bytes(100_000))

    assert "run: nothing saved (File too large); the rest is whole" in _full(
        write, tmp_path / "file"
    )


def test_the_system_s_words_are_found_behind_other_errors():
    def fail(path: Path) -> None:
        try:
            raise OSError(errno.EDQUOT, "any words")
        except OSError as error:
            raise ValueError("a library's words") from error

    with pytest.raises(UserError, match="Disk quota exceeded"), storage_faults("a", "b"):
        fail(Path())
    with pytest.raises(UserError, match="No space left on device"), storage_faults("a", "b"):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device "
            "[os_error_code='28']"
        )


def test_other_errors_go_through():
    for error in (
        PermissionError(errno.EACCES, "no"),
        ValueError("no"),
        UserError("no space left on device"),
    ):
        with pytest.raises(type(error)) as caught, storage_faults("a", "b"):
            raise error
        assert caught.value is error
    for error in (ValueError("no"), jax.errors.JaxRuntimeError("INTERNAL: no"), UserError("no")):
        with pytest.raises(type(error)) as caught, memory_faults():
            raise error
        assert caught.value is error


@pytest.mark.parametrize("where", LACKING)
def test_memory_that_is_lacking_is_one_line_with_knobs(where: str):
    with pytest.raises(UserError, match="out of memory") as caught, memory_faults():
        LACKING[where]()
    text = str(caught.value)
    assert "\n" not in text
    for knob in (
        "train.accumulate=2",
        "model.remat=true",
        "model.dtype=bfloat16",
        "--fsdp N",
        "train.batch_size",
    ):
        assert knob in text


def test_a_disk_that_would_be_full_is_told_before(small_disk: Callable[[str], Path]):
    disk = small_disk("size=1m")
    arrays = {"a": np.zeros((400, 1000), np.float32), "b": [jnp.zeros((100, 1000))]}  # 2 MB
    with pytest.raises(UserError) as caught:
        check_room(disk, arrays, "run: nothing saved", "the rest is whole")
    told = (
        r"run: nothing saved \(1\.8 MB needed, 1\.0 MB free\); the rest is whole; make room and "
        r"repeat the command"
    )
    assert re.fullmatch(told, str(caught.value))
    check_room(disk, arrays["b"], "", "")
    small_disk("size=2m")
    check_room(disk, arrays, "", "")


def test_damage_is_one_line_with_the_innermost_reason():
    def fail() -> None:
        try:
            raise ValueError("DATA_LOSS: " + "x" * 300 + "\nmore")
        except ValueError as error:
            raise Exception("See full details: <bound method>") from error

    with pytest.raises(UserError) as caught, damage_faults("step 3", "delete it"):
        fail()
    assert str(caught.value) == f"step 3 (DATA_LOSS: {'x' * 149}); delete it"
    with pytest.raises(MemoryError), damage_faults("step 3", "delete it"):
        raise MemoryError
    with (
        pytest.raises(UserError, match=r"step 3 \(KeyError\); delete it"),
        damage_faults("step 3", "delete it"),
    ):
        raise KeyError


def test_the_log_tells_of_no_error_that_is_raised(caplog: pytest.LogCaptureFixture):
    silence()
    silence()
    logger = logging.getLogger("asyncio")
    for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("another")):
        logger.error("Task exception was never retrieved", exc_info=error)
    logging.getLogger("absl").error("each phase")
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [error.args for error in errors if error is not None] == [("another",)]
    assert len(caplog.records) == 1


def test_nor_do_threads_whose_write_or_read_nobody_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "unraisablehook", None)
    silence()
    read = "Encountered error while reading array index: (). See full TensorStore details"
    for text in ("Event loop is closed", read, "another"):
        hook: Any = sys.unraisablehook
        hook(SimpleNamespace(exc_value=RuntimeError(text)), print)
    (line,) = capsys.readouterr().out.splitlines()
    assert "another" in line
