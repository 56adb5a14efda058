import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from flowtrain.cli import main
from tests.flowtrain.datasets import write_dataset


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(main, ["trian"])
    assert result.exit_code == 2
    assert "No such command 'trian'" in result.output


def test_what_the_disk_refuses_is_one_line(tmp_path):
    write_dataset(tmp_path / "data", records=8)
    (tmp_path / "file").touch()
    arguments = [
        "train",
        str(tmp_path / "data"),
        "--workdir",
        str(tmp_path / "file" / "run"),
        "--recipe",
        "debug",
    ]
    result = CliRunner().invoke(main, [*arguments, "--set", "train.batch_size=8"])
    assert result.exit_code == 2, result.output
    assert os.strerror(errno.ENOTDIR) in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frob"], "No such command 'frob'; see `flowtrain --help`"),
        (["train"], "Missing argument 'DATA'; see `flowtrain train --help`"),
        (
            ["data", "verify", "a", "b"],
            "Got unexpected extra argument (b); see `flowtrain data verify --help`",
        ),
        (
            ["preprocess", "a", "b", "--seed", "x"],
            "is not a valid integer range; see `flowtrain preprocess --help`",
        ),
    ],
)
def test_wrong_usage_is_one_line(arguments, line):
    result = CliRunner().invoke(main, arguments, prog_name="flowtrain")
    assert result.exit_code == 2
    assert result.output.endswith(f"{line}\n")
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


def test_ctrl_c_reaches_the_stage_and_its_status_comes_back(tmp_path):
    command = [sys.executable, "-m", "flowtrain.cli", "quickstart", str(tmp_path)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "latents" / "settings.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, output.decode()[-2000:]
    assert b"the preprocess stage ended with status 130; repeat the command to go on" in output
    assert b"Traceback" not in output
