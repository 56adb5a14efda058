"""Bars that workers move by small files: all of it arrives, and nothing stays behind."""

import io
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tqdm import tqdm

from evaluation import progress
from evaluation.progress import tick, watched


@pytest.fixture
def bar() -> Any:
    """A bar that paints where nobody looks."""
    return tqdm(total=100, file=io.StringIO())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "ticks" / "here")


def test_the_last_ticks_of_all_workers_arrive(folder: str, bar: Any) -> None:
    with watched(folder, bar):
        for done in (1, 2, 30):
            tick(folder, 0, done)
        tick(folder, 12, 4)
    assert bar.n == 34
    assert not Path(folder).exists()


def test_the_bar_moves_while_the_work_goes_on(
    folder: str, bar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0.001)
    with watched(folder, bar):
        for done in (5, 9):
            tick(folder, 0, done)
            deadline = time.monotonic() + 30
            while bar.n < done and time.monotonic() < deadline:
                time.sleep(0.001)
            assert bar.n == done
        tick(folder, 0, 3)  # a worker that begins again
        (Path(folder) / "1").write_text("")  # one that is just writing
    assert bar.n == 9, "never back"


def test_where_nobody_watches_ticks_have_no_effect(folder: str, tmp_path: Path) -> None:
    with watched(folder, None):
        tick(folder, 0, 5)
    tick(folder, 0, 5)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_work_is_handed_on_and_leaves_nothing(folder: str, bar: Any) -> None:
    def work() -> NoReturn:
        tick(folder, 0, 5)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), watched(folder, bar):
        work()
    assert bar.n == 5
    assert not Path(folder).exists()


def test_a_folder_that_cannot_be_made_stops_no_work(tmp_path: Path, bar: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with watched(str(tmp_path / "file" / "ticks"), bar):
        tick(str(tmp_path / "file" / "ticks"), 0, 5)
    assert bar.n == 0
    assert (tmp_path / "file").read_text() == "in the way"
