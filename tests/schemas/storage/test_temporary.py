import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from schemas.storage.temporary import sweep_temporary, temporary_folder

HOLD = """
from schemas.storage.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_folder_is_gone_at_the_end_also_after_an_error(place: Path) -> None:
    with temporary_folder() as one, temporary_folder() as other:
        assert one != other
        assert {one.parent, other.parent} == {place}
        (one / "file").write_text("x")
    with pytest.raises(OSError, match="full"), temporary_folder():
        raise OSError("full")
    assert list(place.iterdir()) == []


def test_folder_of_a_killed_process_is_swept_and_no_other(place: Path) -> None:
    (place / "flowtrain-work-empty").mkdir()  # killed before it could lock
    (place / "flowtrain-work-unlocked").mkdir()
    (place / "flowtrain-work-unlocked" / "file").touch()  # not ours to judge
    (place / "other").mkdir()
    with (
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True) as holder,
        temporary_folder(),
    ):
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        before = {*place.iterdir()}
        sweep_temporary()
        assert {*place.iterdir()} == before - {place / "flowtrain-work-empty"}
        holder.kill()
        holder.wait()
        assert (folder / "half").exists()
        sweep_temporary()
        assert not folder.exists()
    assert {path.name for path in place.iterdir()} == {"flowtrain-work-unlocked", "other"}
