"""One part in a process of its own, within its limit."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import results
from benchmarks.gpu_parts.machine import ROOT, facts
from benchmarks.gpu_parts.part import Context, Part


class Runner:
    """The attempts of one work directory.

    Args:
        work: results, logs, inputs and checkpoints, for this call and later ones.
        copies: folders that get the two files of results too.
        command: told with every result.
    """

    def __init__(self, work: Path, copies: list[Path], command: list[str]):
        self.work, self._folders, self._command = work, [work, *copies], shlex.join(command)
        self.attempts = results.read(work)
        for attempt in self.attempts:
            if attempt["status"] == results.RUNNING:  # the call itself was ended
                attempt["status"], attempt["reason"] = results.OVER, "the whole call was ended"
                attempt["rows"] = results.read_rows(Path(attempt["file"]))

    def run(self, part: Part, limit: float, tiny: bool, options: dict[str, Any]) -> results.Attempt:
        """Run a part and keep what comes of it, whatever that is."""
        number = len(self.attempts)
        rows, log = (
            self._place("rows", f"{number:03}-{part.name}.jsonl"),
            self._place("logs", f"{number:03}.log"),
        )
        rows.unlink(missing_ok=True)
        begun = time.time()
        attempt: results.Attempt = {
            "part": part.name,
            "status": results.RUNNING,
            "reason": "",
            "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(begun)),
            "seconds": 0.0,
            "limit": limit,
            "tiny": tiny,
            "command": self._command,
            **facts(),
            "file": str(rows),
            "rows": [],
        }
        self.attempts.append(attempt)
        results.write(self.attempts, self._folders)
        context = Context(part.name, part.module, self.work, rows, tiny, begun + limit, options)
        status, reason = _in_a_process(context, limit, log)
        found = results.read_rows(rows)
        unfinished = [row["unfinished"] for row in found if "unfinished" in row]
        if status == results.DONE and unfinished:
            status, reason = results.UNFINISHED, unfinished[-1]
        found = [row for row in found if "unfinished" not in row]
        attempt |= {
            "status": status,
            "reason": reason,
            "seconds": time.time() - begun,
            "rows": found,
        }
        results.write(self.attempts, self._folders)
        return attempt

    def _place(self, folder: str, name: str) -> Path:
        (self.work / folder).mkdir(parents=True, exist_ok=True)
        return self.work / folder / name


def _in_a_process(context: Context, limit: float, log: Path) -> tuple[str, str]:
    """(status, reason). Whatever the part has started ends with it, and the device's memory is free
    again.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_parts.child", context.to_json()]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return results.OVER, f"ended after {limit:.0f} s; {_last_line(log)}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        return results.DONE, ""
    ended = f"ended by signal {-code}; " if code < 0 else ""
    return results.FAILED, ended + _last_line(log)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"last line: {lines[-1].strip()[:300]}" if lines else "it said nothing"
