"""The commands in this process, through the click layer."""

from click.testing import CliRunner, Result

from flowtrain.cli import main


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
