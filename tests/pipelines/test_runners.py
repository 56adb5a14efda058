"""The same images give the same bytes on every runner, also when a worker of it was killed half
way.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.dataset.shard_results import DONE
from schemas.storage.directory import WORK
from tests.pipelines.running import contents, run, start

SHARDS = 12
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
# of processes, a pool, Dask: in their command lines
WORKERS = (
    "pipelines.runners.worker",
    "SdkHarness",
    "spawn_main",
)
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("dask") is None, reason="dask: pip install 'flowtrain[dask]'"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def serve(module: str, *arguments: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server of Beam's in a process of its own, once it answers; its workers find the Python of
    the tests.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", module, *arguments]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            with socket.socket() as client:
                if not client.connect_ex(("localhost", port)):
                    break
            time.sleep(0.05)
        yield server
    finally:
        for worker in workers_of(server.pid):
            os.kill(worker, signal.SIGKILL)
        server.kill()
        server.wait()


def workers_of(pid: int) -> list[int]:
    """Worker processes below a process, from the kernel's tables."""
    found = []
    for table in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, table.read_text().split()):
            found += workers_of(child)
            if any(name in Path(f"/proc/{child}/cmdline").read_text() for name in WORKERS):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def job_service() -> Iterator[str]:
    port = free_port()
    for _ in serve(
        "apache_beam.runners.portability.local_job_service_main", f"--port={port}", port=port
    ):
        yield f"--job_endpoint=localhost:{port}"


@pytest.fixture(scope="module")
def worker_pool() -> Iterator[tuple[int, str]]:
    port = free_port()
    for server in serve(
        "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}", port=port
    ):
        yield server.pid, f"--environment_config=localhost:{port}"


@pytest.fixture(scope="module")
def pool(job_service: str, worker_pool: tuple[int, str]) -> list[str]:
    return ["--runner=PortableRunner", job_service, "--environment_type=EXTERNAL", worker_pool[1]]


@pytest.fixture(scope="module")
def arguments(tiny_vae: Path) -> list[object]:
    return [
        "--resolution",
        16,
        "--shards",
        SHARDS,
        "--batch-size",
        4,
        "--vae",
        tiny_vae,
        "--min-psnr",
        0,
        "--flips",
    ]


@pytest.fixture(scope="module")
def expected(
    photos: Path, arguments: list[object], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """A run in this process."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run(photos, out, *arguments).exit_code == 0
    return contents(out)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """What a command printed on stderr when it is through."""
    _, errors = process.communicate(timeout=240)
    assert process.returncode == status, errors
    return errors


def wait_for_a_shard(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob(f"{WORK}/*/{DONE}/[0-9]*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_a_worker(out: Path, process: subprocess.Popen[str], above: int) -> None:
    """SIGKILL to a worker below a process when the first shard is done."""
    wait_for_a_shard(out, process)
    os.kill(workers_of(above)[0], signal.SIGKILL)


def test_work_in_this_process_for_a_job_service_that_is_killed(
    photos: Path,
    arguments: list[object],
    expected: dict[str, bytes],
    job_service: str,
    tmp_path: Path,
) -> None:
    out, port = tmp_path / "out", free_port()
    loopback = ["--runner=PortableRunner", "--environment_type=LOOPBACK"]
    for service in serve(
        "apache_beam.runners.portability.local_job_service_main", f"--port={port}", port=port
    ):
        process = start(
            photos, out, *arguments, "--", *loopback, f"--job_endpoint=localhost:{port}"
        )
        wait_for_a_shard(out, process)
        service.kill()
        (line,) = finish(process, 2).splitlines()
        assert line.startswith(
            f"Error: PortableRunner: the job service at localhost:{port} is gone"
        )
    assert finish(start(photos, out, *arguments, "--", *loopback, job_service)) == ""
    assert contents(out) == expected


def test_processes_on_this_machine_one_of_them_killed(
    photos: Path, arguments: list[object], expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(photos, out, *arguments, "--", *PROCESSES)
    kill_a_worker(out, process, process.pid)
    # The shell has a word before it ("Killed"), and sometimes C++ libraries of the other worker,
    # whose pipe breaks.
    *others, last = finish(process, 2).splitlines()
    assert last == "Error: a worker process died (out of memory?); repeat the command to go on"
    assert not [
        line for line in others if "Traceback" in line or line.startswith(("Error", "  File"))
    ]
    assert finish(start(photos, out, *arguments, "--", *PROCESSES)) == ""
    assert contents(out) == expected


def test_pool_of_workers_one_of_them_killed(
    photos: Path,
    arguments: list[object],
    expected: dict[str, bytes],
    pool: list[str],
    worker_pool: tuple[int, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = start(photos, out, *arguments, "--", *pool)
    kill_a_worker(out, process, worker_pool[0])
    (line,) = finish(process, 2).splitlines()
    assert line == "Error: a worker process died (out of memory?); repeat the command to go on"
    assert finish(start(photos, out, *arguments, "--", *pool)) == ""
    assert contents(out) == expected


@needs_dask
def test_dask_does_the_work_of_a_killed_worker_again(
    photos: Path, arguments: list[object], expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(photos, out, *arguments, "--", "--runner=dask")
    kill_a_worker(out, process, process.pid)
    finish(process)  # Dask speaks of the worker on stderr
    assert contents(out) == expected
