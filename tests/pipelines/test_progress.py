import io
import sys
import time
from pathlib import Path

import pytest

from pipelines.progress import ProgressBar, Ticker
from pipelines.results import marker_name
from pipelines.storage import LocalDirectory


def test_bar_counts_done_shards_and_ticks_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = LocalDirectory(str(tmp_path))
    directory.write(marker_name(0), "{}")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with ProgressBar(directory, [10, 20, 30], enabled=True):
        ticker = Ticker(directory, 1)
        ticker.add(4)
        Ticker(directory, 0).add(10)  # done: not counted twice
        time.sleep(0.7)
    last = shown.getvalue().split("\r")[-1]
    assert "14/60" in last
    assert "img/s" in last


def test_silent_where_stderr_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(LocalDirectory(str(tmp_path)), [1]):
        pass
    assert capfd.readouterr() == ("", "")
