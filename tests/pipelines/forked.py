"""Commands that start at once: forked from a process that has imported everything, each in a
session of its own.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


def _serve() -> None:
    """Fork a child for every line of stdin, and print its process id; on stdin's end, end."""
    warnings.simplefilter("ignore")  # JAX warns of forks; it has no threads yet
    from flowtrain.cli import main

    for module in ("boto3", "google.cloud.storage", "jax", "flax.nnx"):
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
                _become(main, task)
        print(answer, flush=True)  # noqa: T201


def _become(main: Any, task: dict[str, Any]) -> NoReturn:
    os.setsid()
    os.environ.update(task["environment"])
    tempfile.tempdir = None  # forget what TMPDIR was
    for number, name in ((0, os.devnull), (1, task["output"]), (2, task["output"])):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, number)
    sys.exit(main(["preprocess", *task["arguments"]], prog_name="flowtrain"))


@dataclass(frozen=True)
class Command:
    """A running `flowtrain preprocess`. Its process id is that of its session too."""

    pid: int
    output: Path
    template: "Template"

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return self.template.ask({"wait": self.pid})

    def running(self) -> bool:
        """Whether it has not ended; it is a zombie until it is waited for."""
        return _status(self.pid)[0] != "Z"

    def text(self) -> str:
        """What it has printed, on stdout and stderr."""
        return self.output.read_text()


@dataclass
class Template:
    """The process that forks."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0

    def ask(self, task: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments: object, **environment: str) -> Command:
        """Begin `flowtrain preprocess ARGUMENTS`."""
        self.count += 1
        output = self.folder / f"{self.count}.txt"
        output.touch()
        task = {
            "arguments": [*map(str, arguments)],
            "environment": environment,
            "output": str(output),
        }
        return Command(self.ask(task), output, self)


@contextmanager
def template(folder: Path) -> Iterator[Template]:
    """The template, warm; it and what it has forked is gone at the end."""
    command = [sys.executable, "-c", "from tests.pipelines.forked import _serve; _serve()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        yield Template(process, folder)
    finally:
        process.kill()
        process.communicate()


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
