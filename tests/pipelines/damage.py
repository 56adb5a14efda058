"""Damage a file of a dataset, and do what `data verify` prints."""

import shlex
import subprocess
from pathlib import Path

from click.testing import CliRunner

from flowtrain.cli import main


def follow(commands: tuple[str, ...]) -> None:
    """Do what is printed: `rm` by the shell, flowtrain in this process."""
    for line in commands:
        words = shlex.split(line)
        if words[0] == "flowtrain":
            result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
        else:
            subprocess.run(line, shell=True, check=True)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
