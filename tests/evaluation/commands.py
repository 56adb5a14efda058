"""The commands in this process, through the click layer, or in one of their own."""

import pytest
from click.testing import CliRunner, Result

from flowtrain.cli import main
from tests.flags import with_devices
from tests.forked import Command, template


def call(*arguments: object) -> Result:
    """`flowtrain ARGUMENTS`; a fault of ours is raised."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: object) -> Result:
    """A command that must end well."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: object) -> str:
    """Exit status 2, nothing on stdout, one line on stderr, which is returned."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    return errors[0]


def start(*arguments: object) -> Command:
    """`flowtrain ARGUMENTS` as a process with the devices of this one and the tests' protocol."""
    return template().start(
        *arguments, program="tests.evaluation.commands:main_with_tiny", XLA_FLAGS=with_devices(8)
    )


def main_with_tiny(arguments: list[str], prog_name: str) -> None:
    """`flowtrain ARGUMENTS` with the protocol of the tests."""
    from tests.evaluation.conftest import add_tiny_protocol

    with pytest.MonkeyPatch.context() as patch:
        add_tiny_protocol(patch)
        main(arguments, prog_name)
