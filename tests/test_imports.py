"""What may be imported where, beyond the contracts of import-linter: the weight of `--help`, and
bare GPU machines.
"""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from flowtrain.cli import COMMANDS, main
from tests.bare import ABSENT

HEAVY = {
    "numpy",
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "apache_beam",
    "tensorflow_datasets",
    "PIL",
    "matplotlib",
    "torch",
}
# What a machine that only computes has, besides the standard library.
COMPUTE = ["jax", "jaxlib", "flax", "optax", "numpy", "jaxtyping"]
COMPUTE_MODULES = [
    "flowtrain.devices.ceiling",
    "flowtrain.records.counter",
    "flowtrain.records.latents",
    "flowtrain.model",
    "flowtrain.shapes",
    "flowtrain.flow.objective",
    "flowtrain.flow.path",
    "flowtrain.step",
    "pipelines.encoders.kl",
    "pipelines.encoders.tiny",
    "flowtrain.flow.solvers",
    "evaluation.extractors.dinov2",
    "evaluation.extractors.effnet_lite0",
    "evaluation.extractors.embedded",
    "evaluation.extractors.inception",
    "evaluation.metrics.inception_score",
    "evaluation.metrics.kernel",
    "evaluation.metrics.neighbours",
    "evaluation.metrics.uncertainty",
]

BARE = """
import importlib, importlib.abc, sys, traceback
import {allowed}
absent = {absent!r}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{{name}} is not on a bare machine")
sys.meta_path.insert(0, Absent())
for name in absent:
    for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[loaded]
for module in {modules!r}:
    try:
        importlib.import_module(module)
    except ImportError:
        print(module, traceback.format_exc(limit=-1))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_naming_every_command_imports_nothing_heavy():
    modules = sorted({module for module, _, _ in COMMANDS.values()})
    result = python(
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert result.returncode == 0, result.stderr
    assert not HEAVY & set(result.stdout.split())


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_help_is_there_with_an_example(command):
    result = CliRunner().invoke(main, [*command, "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert not command or "Example" in result.output


def test_imports_on_a_machine_that_only_computes():
    code = BARE.format(allowed=", ".join(COMPUTE), absent=ABSENT, modules=COMPUTE_MODULES)
    result = python(code)
    assert result.returncode == 0, result.stderr[-1500:]
    assert not result.stdout
