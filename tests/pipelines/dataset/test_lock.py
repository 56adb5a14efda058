import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dataset import lock
from pipelines.dataset.lock import exclusive, held
from schemas.errors import UserError
from schemas.storage.directory import WORK, Directory

HOLD = """
import sys
from pipelines.dataset.lock import exclusive
from schemas.storage.directory import Directory
with exclusive(Directory(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_at_a_time_and_free_again_when_the_holder_is_killed(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another command is writing"), exclusive(directory):
            pass
        holder.kill()
    with exclusive(directory):
        pass


def test_file_deleted_between_opening_and_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before us finishes at the worst moment: we then hold a file that nobody else can
    see.
    """
    path = tmp_path / WORK / "lock"
    real_open = lock._open
    opened = []

    def open_then_lose(where: Path) -> int:
        handle = real_open(where)
        if not opened:
            path.unlink()
        opened.append(handle)
        return handle

    monkeypatch.setattr(lock, "_open", open_then_lose)
    with exclusive(Directory(str(tmp_path))):
        assert len(opened) == 2
        with pytest.raises(UserError), exclusive(Directory(str(tmp_path))):
            pass


def test_directory_cleared_away_before_the_lock_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, lost = os.open, []

    def lose_then_open(path: Path, *arguments: int) -> int:
        if not lost:
            lost.append(path)
            path.parent.rmdir()
        return real_open(path, *arguments)

    monkeypatch.setattr(os, "open", lose_then_open)
    with exclusive(Directory(str(tmp_path))):
        assert lost[0].exists()


def test_holder_may_delete_the_lock(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "new"))
    with exclusive(directory):
        directory.clear_work()
    with exclusive(directory):
        assert directory.exists(f"{WORK}/lock")
        with pytest.raises(UserError), exclusive(directory):
            pass


def test_file_that_another_command_has_replaced_is_no_lock(tmp_path: Path) -> None:
    """Both have written the same file; who locks the one that was there before locks nothing."""
    path = tmp_path / "file"
    path.write_text("first")
    opened: list[int] = []

    def open_then_replace(where: Path) -> int:
        opened.append(os.open(where, os.O_RDONLY))
        if len(opened) == 1:
            (tmp_path / "other").write_text("second")
            (tmp_path / "other").replace(path)
        return opened[-1]

    with held(path, open_then_replace, "in use"):
        assert len(opened) == 2
        again = held(path, lambda where: os.open(where, os.O_RDONLY), "in use")
        with pytest.raises(UserError, match="in use"), again:
            pass
