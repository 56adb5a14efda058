"""Eight fake CPU devices, one compilation cache, no promotion of types and ranks, shapes checked:
set before anything imports JAX or what is checked.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("FLOWTRAIN_TEST_CACHE", ROOT / ".cache" / "jax"))

# In the environment, not in jax.config, so that the commands which tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
_INHERITED_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_INHERITED_XLA_FLAGS} --xla_force_host_platform_device_count=8".strip()

import jax  # noqa: E402  (after the environment)

jax.devices()  # reads the flags
os.environ["XLA_FLAGS"] = _INHERITED_XLA_FLAGS  # child processes see one device
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

sys.path.insert(0, str(ROOT))
from tests.shapes import check_shapes  # noqa: E402  (before any module that it checks)

check_shapes()


def pytest_configure() -> None:
    assert len(jax.devices()) == 8, (
        "XLA_FLAGS came too late: something imported JAX before conftest"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules at the root go first: each runs whole roads for minutes, and of two processes one
    would wait for the other at the end.
    """
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real sample images that are not part of the repository."""
    path = Path(os.environ.get("FLOWTRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("no sample images: set FLOWTRAIN_SHARED_DATA to a folder that holds them")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk with mount options (`size=300k`, `nr_inodes=20`), and with other ones when asked
    again.
    """
    path = tmp_path / "disk"
    path.mkdir()
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        options = f"remount,{options}" if mounted else options
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"no right to mount a small disk: {result.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    if mounted:
        # a thread of a failed save may still hold a file open
        subprocess.run(["umount", "--lazy", path], check=True)
