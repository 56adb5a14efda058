import errno
import os
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from flowtrain.cli import COMMANDS, main
from flowtrain.option_types import LocalPath
from pipelines.option_types import FiniteRange
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


def test_a_user_without_name_and_home_is_served(tmp_path):
    """As in a container that was started with --user and an identity that it does not know."""
    code = (
        "import pwd, tempfile\n"
        "def nobody(user): raise KeyError(user)\n"
        "pwd.getpwuid = pwd.getpwnam = nobody\n"
        "from flowtrain.cli import main\n"
        "main(['train', '--help'])\n"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER")}
    kept = {name: value for name, value in kept.items() if not name.startswith(("XDG", "LOGNAME"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def command_of(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def test_every_number_with_a_point_is_finite():
    """Of click's own types all take nan, which passes whatever it is compared with."""
    for name in COMMANDS:
        command = command_of(name)
        plain = [
            each.name
            for each in command.params
            if isinstance(each.type, (click.types.FloatParamType, click.FloatRange))
            and not isinstance(each.type, FiniteRange)
        ]
        assert not plain, f"{name}: {plain}"


def local_paths() -> list[tuple[str, str]]:
    """Each command with each of its parameters that is a path on this machine."""
    found = []
    for name in COMMANDS:
        command = command_of(name)
        found += [(name, each.name) for each in command.params if isinstance(each.type, LocalPath)]
    return found


def test_every_path_that_becomes_a_path_is_one_of_this_machine():
    assert {("train", "workdir"), ("eval", "reference"), ("stats", "out")} <= set(local_paths())
    for name in COMMANDS:
        command = command_of(name)
        plain = [
            each.name
            for each in command.params
            if isinstance(each.type, click.Path)
            and not isinstance(each.type, LocalPath)
            and each.type.type is not None
        ]
        assert not plain, f"{name}: {plain}"


@pytest.mark.parametrize("value", ["s3://bucket/run", "gs://bucket/run.npz", ""])
@pytest.mark.parametrize(("name", "parameter"), local_paths())
def test_a_url_is_no_local_directory(name, parameter, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = command_of(name)
    words = []
    for each in command.params:
        if isinstance(each, click.Argument) and each.nargs != -1:
            words.append(value if each.name == parameter else "somewhere")
        elif isinstance(each, click.Argument) and each.name == parameter:
            words.append(value)
        elif each.name == parameter or each.required:
            words += [each.opts[0], value if each.name == parameter else "something"]
    result = CliRunner().invoke(main, [name, *words])
    assert result.exit_code == 2, result.output
    expected = "is empty" if not value else f"{value}: object stores are not served here"
    assert expected in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
