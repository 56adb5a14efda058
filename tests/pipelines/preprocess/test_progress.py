import io
import sys
import time
from pathlib import Path

import pytest

from pipelines.dataset.shard_results import marker_name
from pipelines.preprocess import progress
from pipelines.preprocess.progress import ProgressBar, Ticker
from schemas.storage.directory import Directory


def test_bar_counts_done_shards_and_ticks_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(str(tmp_path))
    directory.write(marker_name("work", 0), "{}")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with ProgressBar(directory, "work", [10, 20, 30], enabled=True) as bar:
        Ticker(bar.ticks, 1).add(4)
        Ticker(bar.ticks, 0).add(10)  # done: not counted twice
    last = shown.getvalue().split("\r")[-1]
    assert "14/60" in last
    assert "img/s" in last


def test_silent_where_stderr_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(Directory(str(tmp_path)), "work", [1]) as bar:
        assert bar.ticks is None
        Ticker(bar.ticks, 0).add(1)
    assert capfd.readouterr() == ("", "")


def test_worker_on_another_machine_keeps_its_ticks_to_itself(tmp_path: Path) -> None:
    Ticker(str(tmp_path / "elsewhere"), 0).add(1)
    assert list(tmp_path.iterdir()) == []


def test_store_that_is_slow_to_list_is_looked_at_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    class Slow(Directory):
        @property
        def patience(self) -> float:
            return 1000.0

        def names(self, name: str = "") -> list[str]:
            looks.append(name)
            return super().names(name)

    directory = Slow(str(tmp_path))
    shown = io.StringIO()
    monkeypatch.setattr(progress, "_INTERVAL", 0.01)
    monkeypatch.setattr(sys, "stderr", shown)
    with ProgressBar(directory, "work", [10, 20], enabled=True) as bar:
        Ticker(bar.ticks, 1).add(4)
        time.sleep(0.2)
        directory.write(marker_name("work", 0), "{}")
    assert looks == ["work/done"] * 2
    assert "14/30" in shown.getvalue().split("\r")[-1]
