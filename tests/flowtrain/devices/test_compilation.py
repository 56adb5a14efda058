import os
import subprocess
import sys
from pathlib import Path

from flowtrain.devices.compilation import use_compilation_cache


def test_the_environment_goes_before_the_user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "theirs")
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "theirs"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "flowtrain" / "jax")


def test_every_command_compiles_into_it(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    # a fast machine is below the default
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [
        sys.executable,
        "-m",
        "flowtrain.cli",
        "preprocess",
        "embedded:digits",
        str(tmp_path / "out"),
    ]
    command += [
        "--split",
        "test",
        "--resolution",
        "32",
        "--vae",
        "embedded",
        "--batch-size",
        "8",
        "--min-psnr",
        "99",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "below --min-psnr" in result.stderr
    assert list((tmp_path / "flowtrain" / "jax").iterdir())
