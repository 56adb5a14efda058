"""Commands that start at once: forked from a process that has imported everything, each in a
session of its own.
"""

import atexit
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

# what the commands import when they run
_MODULES = (
    "flowtrain.cli",
    "boto3",
    "google.cloud.storage",
    "pipelines.preprocess.pipeline",
    "flowtrain.train_cli",
    "flowtrain.train",
    "evaluation.evaluate",
    "evaluation.preview.preview",
)

_ENVIRONMENT = dict(os.environ)  # without what a test changes


def _serve() -> None:
    """Fork a child for every line of stdin, and print its process id; on stdin's end, end."""
    warnings.simplefilter("ignore")  # JAX warns of forks; it has no threads yet
    for module in _MODULES:
        with suppress(ImportError):
            __import__(module)
    print("warm", flush=True)  # noqa: T201
    for line in sys.stdin:
        task = json.loads(line)
        if "wait" in task:
            _, status = os.waitpid(task["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                _become(task)
        print(answer, flush=True)  # noqa: T201


def _become(task: dict[str, Any]) -> NoReturn:
    os.setsid()
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    tempfile.tempdir = None  # forget what TMPDIR was
    for number, name in ((0, os.devnull), (1, task["output"]), (2, task["errors"])):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, number)
    module, _, name = task["program"].partition(":")
    sys.exit(getattr(importlib.import_module(module), name)(task["arguments"], "flowtrain"))


@dataclass
class Command:
    """A running `flowtrain`, with the methods of `subprocess.Popen`. Its process id is that of its
    session too.
    """

    pid: int
    output: Path
    errors: Path
    template: "Template"
    returncode: int | None = None
    _ended: threading.Lock = field(default_factory=threading.Lock)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.wait() if _status(self.pid)[0] == "Z" else None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it runs for longer than `timeout` seconds.
        """
        with self._ended:
            if self.returncode is not None:
                return self.returncode
            handle = os.pidfd_open(self.pid)
            try:
                ended, _, _ = select.select([handle], [], [], timeout)
            finally:
                os.close(handle)
            if not ended:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = status = self.template.ask({"wait": self.pid})
            return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed on stdout and on stderr, when it has ended."""
        self.wait(timeout)
        return self.output.read_text(), self.errors.read_text()

    def send_signal(self, number: int) -> None:
        """To the command alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended; it is a zombie until it is waited for."""
        return _status(self.pid)[0] != "Z"

    def text(self) -> str:
        """What it has printed, on stdout and then on stderr."""
        return self.output.read_text() + self.errors.read_text()


@dataclass
class Template:
    """The process that forks."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, task: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._asking:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline())

    def start(
        self, *arguments: object, program: str = "flowtrain.cli:main", **environment: str
    ) -> Command:
        """Begin `flowtrain ARGUMENTS` in this process's environment and folder."""
        self.count += 1
        output = self.folder / f"{self.count}.out"
        errors = self.folder / f"{self.count}.err"
        output.touch()
        errors.touch()
        task = {
            "arguments": [*map(str, arguments)],
            "environment": {**os.environ, **environment},
            "folder": str(Path.cwd()),
            "program": program,
            "output": str(output),
            "errors": str(errors),
        }
        return Command(self.ask(task), output, errors, self)


@cache
def template() -> Template:
    """The one of this process, warm; it and what it has printed is gone at the end."""
    command = [sys.executable, "-c", "from tests.forked import _serve; _serve()"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
    )
    folder = Path(tempfile.mkdtemp(prefix="flowtrain-commands-"))

    def end() -> None:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    assert process.stdout is not None
    assert process.stdout.readline() == "warm\n"
    return Template(process, folder)


def start_preprocess(*arguments: object, **environment: str) -> Command:
    """Begin `flowtrain preprocess ARGUMENTS`."""
    return template().start("preprocess", *arguments, **environment)


def _status(process: int) -> tuple[str, int]:
    """Letter of a process's state, and its session; "Z" for a zombie and for what is not there."""
    try:
        state, _, _, number = (
            Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:4]
        )
    except OSError:
        return "Z", 0
    return state, int(number)


def session(leader: int) -> list[int]:
    """Processes of a session that have not ended."""
    every = (
        (int(entry.name), _status(int(entry.name)))
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
    )
    return [process for process, (state, number) in every if number == leader and state != "Z"]


def kill(*processes: int) -> None:
    """SIGKILL, also for those that have ended by now."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
