"""What a wheel must hold besides Python files."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_recipes_weights_and_template(tmp_path):
    # Hatchling's own builder, which needs no network; `pip wheel` would fetch the build backend.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [
        "flowtrain/recipes/*.toml",
        "pipelines/assets/*/*",
        "evaluation/assets/*/*",
        "evaluation/report/templates/*",
    ]
    expected = {str(path.relative_to(ROOT)) for pattern in data for path in ROOT.glob(pattern)}
    assert {name.rpartition(".")[2] for name in expected} >= {
        "toml",
        "safetensors",
        "json",
        "md",
        "j2",
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]
