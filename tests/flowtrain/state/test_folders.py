"""Folders of arrays: read in part or whole, and whole whatever happens while they are written or
removed.
"""

import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray
from orbax.checkpoint import checkpoint_managers as policy

from flowtrain.devices.sharding import make_mesh
from flowtrain.state.checksums import CHECKSUMS
from flowtrain.state.folders import StepFolders
from schemas.errors import UserError
from tests.flowtrain.state.test_checksums import flip

SIZE = 50_000  # floats of an array: 200 kB


def _values(step: int) -> NDArray[np.float32]:
    return np.random.default_rng(step).standard_normal(SIZE).astype(np.float32)


def _arrays(step: int) -> dict[str, Any]:
    return {
        "a0.5": {"x": jnp.asarray(_values(step))},
        "b": [jnp.int32(step), jnp.asarray(_values(100 + step))],
    }


def _targets() -> dict[str, Any]:
    place = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda: _arrays(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )


def _open(path: Path, keep: int = 9, *, read_only: bool = False) -> StepFolders:
    return StepFolders(
        path / "folders", "thing", preserve=policy.LatestN(keep), read_only=read_only
    )


def _check(folders: StepFolders, *steps: int) -> None:
    """Exactly these are there, and each holds what was saved."""
    assert folders.steps() == list(steps)
    for step in steps:
        restored = folders.read(step, _targets(), ["note"])
        jax.tree.map(
            np.testing.assert_array_equal, restored, {**_arrays(step), "note": {"of": step}}
        )


def _write(folders: StepFolders, step: int) -> None:
    folders.write(step, _arrays(step), {"note": {"of": step}})


def test_what_is_written_is_read_and_only_what_is_asked_for(tmp_path: Path):
    with _open(tmp_path) as folders:
        for step in (3, 10):
            _write(folders, step)
        _check(folders, 3, 10)  # waits
    for name in ("b", "note"):
        shutil.rmtree(tmp_path / "folders" / "10" / name)
    with _open(tmp_path, read_only=True) as folders:
        assert set(folders.read(10, {"a0.5": _targets()["a0.5"]})) == {"a0.5"}
        with pytest.raises(
            UserError, match=r"folders/10: cannot read the thing .*Item \"note\" was not found"
        ):
            folders.read(10, {}, ["note"])


def test_arrays_come_back_where_they_are_wanted(tmp_path: Path):
    meshes = [make_mesh(jax.devices()[:1]), make_mesh(fsdp=8), make_mesh(fsdp=2)]
    places = [
        NamedSharding(mesh, spec)
        for mesh, spec in zip(meshes, (P(), P("fsdp"), P("data")), strict=True)
    ]
    with _open(tmp_path) as folders:
        for step, place in enumerate(places):
            folders.write(step, {"a": {"x": jax.device_put(_values(7), place)}})
        for step in range(3):
            for place in places:
                target = {"x": jax.ShapeDtypeStruct((SIZE,), jnp.float32, sharding=place)}
                read = folders.read(step, {"a": target})["a"]["x"]
                assert read.sharding == place
                np.testing.assert_array_equal(read, _values(7))


def test_what_is_being_written_does_not_see_donated_buffers(tmp_path: Path):
    """The step after a save overwrites the state in place while the files are still being
    written.
    """
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x = jnp.arange(2_000_000.0)  # not done within the blocking part
    target = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    with _open(tmp_path) as folders:
        folders.write(1, {"a": [x]})
        for _ in range(3):
            x = overwrite(x)
        jax.block_until_ready(x)
        np.testing.assert_array_equal(
            folders.read(1, {"a": [target]})["a"][0], np.arange(2_000_000.0)
        )


def test_the_later_ones_are_cut_and_written_again(tmp_path: Path):
    with _open(tmp_path) as folders:
        for step in (1, 2, 3):
            _write(folders, step)
        folders.cut(1)  # while the last one is being written
        _check(folders, 1)
        _write(folders, 2)
        folders.cut(2)
        _check(folders, 1, 2)
        assert sorted(path.name for path in (tmp_path / "folders").iterdir()) == ["1", "2"]


def test_a_reader_leaves_everything_as_it_is(tmp_path: Path):
    with _open(tmp_path, read_only=True) as folders:
        assert folders.steps() == []
    assert list(tmp_path.iterdir()) == []
    with _open(tmp_path) as folders:
        _write(folders, 1)
    for name in ("2.orbax-checkpoint-tmp", "deleted"):  # of a process that is at work
        (tmp_path / "folders" / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with _open(tmp_path, read_only=True) as folders:
        _check(folders, 1)
    assert sorted(tmp_path.rglob("*")) == before
    with _open(tmp_path) as folders:
        _write(folders, 3)  # waits until what was left is cleared away
    assert sorted(path.name for path in (tmp_path / "folders").iterdir()) == ["1", "3"]


# Killed when the first file of a folder that is no longer kept has been removed; when a save is
# about to be committed; when a save has been begun. One process imports, and others are forked from
# it before it uses a device.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.flowtrain.state.test_folders import _open, _write

    def die(*args, after=None, **options):
        if after is not None:
            after(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    def write(moment):
        with _open(Path(sys.argv[1], moment), keep=1) as folders:
            _write(folders, 1)
            folders.wait()
            if moment == "removing":
                unlink = os.unlink
                os.unlink = lambda *args, **options: die(*args, after=unlink, **options)
            if moment == "committing":
                os.rename = os.replace = lambda a, b: die() if str(b).endswith("/2") else None
            _write(folders, 2)
            if moment == "saving":
                die()

    for moment in ("removing", "committing", "saving"):
        child = os.fork()
        if not child:
            write(moment)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment
"""


def test_killed_at_any_moment_all_that_is_there_is_whole(tmp_path: Path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    subprocess.run(command, check=True, timeout=100)
    for moment, left in (("removing", 2), ("committing", 1), ("saving", 1)):
        path = tmp_path / moment
        with _open(path, read_only=True) as folders:
            _check(folders, left)
        with _open(path, keep=1) as folders:
            _check(folders, left)
            _write(folders, 3)
        assert sorted(entry.name for entry in (path / "folders").iterdir()) == ["3"]


Limit = Callable[[], AbstractContextManager[object]]


@pytest.fixture(params=["bytes", "files", "file size"])
def full(
    request: pytest.FixtureRequest,
    small_disk: Callable[[str], Path],
    small_files: Any,
    tmp_path: Path,
) -> tuple[Path, Limit, Callable[[], object], str]:
    """A directory; what fills it up, as a context; what makes room again; and what the system says.

    "bytes" is told before anything is written, "files" and "file size" by the system, to Python and
    to TensorStore.
    """
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    if request.param == "file size":
        return tmp_path, lambda: small_files(100_000), nothing, r"File too large"
    few, many = {"bytes": ("size=500k", "size=9m"), "files": ("nr_inodes=60", "nr_inodes=900")}[
        request.param
    ]
    disk = small_disk(few)
    words = (
        r"0\.4 MB needed, 0\.\d MB free" if request.param == "bytes" else "No space left on device"
    )
    return disk, nullcontext, lambda: small_disk(many), words


@pytest.mark.parametrize("where", ["wait", "next save", "leaving"])
def test_a_full_disk_is_one_line_and_saves_work_again_when_there_is_room(
    full: tuple[Path, Limit, Callable[[], object], str], where: str
):
    """The save fails in the background, and whatever comes next tells of it."""
    path, filled, make_room, words = full
    told = (
        rf"^{path}: the thing could not be saved \({words}\); those before it are whole; make room "
        r"and repeat"
    )
    with _open(path) as folders:
        _write(folders, 1)

    def fail() -> None:
        with filled(), _open(path) as folders:
            _write(folders, 2)
            if where == "wait":
                folders.wait()
            if where == "next save":
                _write(folders, 3)

    with pytest.raises(UserError, match=told):
        fail()
    with _open(path, read_only=True) as folders:
        _check(folders, 1)
    make_room()
    _settle()
    with _open(path) as folders:
        _write(folders, 2)
        _check(folders, 1, 2)
    assert sorted(entry.name for entry in (path / "folders").iterdir()) == ["1", "2"]


def _settle() -> None:
    """A save that failed leaves threads which write on for a moment; a repeated command has
    none.
    """
    time.sleep(0.5)


@pytest.mark.parametrize(
    "damage",
    ["a0.5/ocdbt.process_0/d/*", "a0.5/manifest.ocdbt", "a0.5/_METADATA", "note/metadata"],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str):
    with _open(tmp_path) as folders:
        _write(folders, 1)
    paths = list((tmp_path / "folders" / "1").glob(damage))
    assert paths
    for path in paths:
        os.truncate(path, path.stat().st_size // 2)
    with _open(tmp_path) as folders:
        with pytest.raises(UserError) as caught:
            folders.read(1, _targets(), ["note"])
        _write(folders, 2)
    folder = tmp_path / "folders" / "1"
    text = str(caught.value)
    assert text.startswith(f"{folder}: cannot read the thing (")
    assert text.endswith(f"); if its files are damaged, delete {folder} and repeat the command")
    assert "\n" not in text


# Outside of items: when orbax saved and committed, which nothing here asks for.
HARMLESS = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def test_a_flipped_bit_in_any_file_is_named_or_harmless(tmp_path: Path):
    """Harmless is what leaves every number as it was."""
    with _open(tmp_path) as folders:
        folders.write(1, _arrays(1), {"note": {"of": 1}}, 0.25)
    folder, drawn = tmp_path / "folders" / "1", random.Random(5)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert {*HARMLESS, CHECKSUMS, "metrics/metrics", "note/metadata"} < set(names)
    harmless = set()
    for name in names:
        bit = drawn.randrange(8 * (folder / name).stat().st_size)
        flip(folder / name, bit)
        try:
            with _open(tmp_path, read_only=True) as folders:
                _check(folders, 1)
            harmless.add(name)
        except UserError as error:
            told = str(error)
            assert str(folder) in told, (name, bit)
            assert name in told, (name, bit)
            assert "delete" in told, (name, bit)
            assert "\n" not in told, (name, bit)
        flip(folder / name, bit)
    assert harmless == HARMLESS
    with _open(tmp_path) as folders:
        _check(folders, 1)


def test_items_and_folders_of_another_step_are_refused(tmp_path: Path):
    with _open(tmp_path) as folders:
        for step in (1, 2):
            _write(folders, step)
    path = tmp_path / "folders"
    shutil.copytree(path / "1", path / "3")
    shutil.copytree(path / "1" / "b", path / "2" / "b", dirs_exist_ok=True)
    with _open(tmp_path, read_only=True) as folders:
        _check_refused(folders, 3, rf"folders/3: cannot read the thing \({CHECKSUMS}: it is of st")
        _check_refused(folders, 2, r"folders/2: cannot read the thing \(b/.*: its bytes are not th")
        assert folders.read(2, {}, ["note"]) == {"note": {"of": 2}}
        assert folders.read(1, {}, ["note"]) == {"note": {"of": 1}}


def _check_refused(folders: StepFolders, step: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        folders.read(step, _targets(), ["note"])


def test_folders_of_earlier_releases_are_read_and_that_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with _open(tmp_path) as folders:
        for step in (1, 2):
            _write(folders, step)
    (tmp_path / "folders" / "1" / CHECKSUMS).unlink()
    for _ in range(2):
        with _open(tmp_path) as folders:
            _check(folders, 1, 2)
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert told == [
        f"{tmp_path}/folders: thing 1 has no checksums, as it is of an earlier release; it is read "
        "unchecked"
    ]


def test_a_damaged_loss_is_named_when_folders_are_opened_and_costs_no_arrays(tmp_path: Path):
    """Orbax reads all of them before anything else, and those stay whose loss is the lowest."""
    with _open(tmp_path) as folders:
        for step in (1, 2):
            folders.write(step, _arrays(step), {"note": {"of": step}}, 0.25 * step)
    path = tmp_path / "folders" / "1" / "metrics" / "metrics"
    for text in ('{"loss": 0.35}', '{"loss": 0.25', '{"mess": 0.25}', "[]"):
        path.write_text(text)
        for read_only in (True, False):
            with pytest.raises(UserError, match=f"^{path}: cannot read it .* delete {path.parent}"):
                _open(tmp_path, read_only=read_only)
    shutil.rmtree(path.parent)
    with _open(tmp_path) as folders:
        _check(folders, 1, 2)
