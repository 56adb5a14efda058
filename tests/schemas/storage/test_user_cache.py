import pwd
import tempfile
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.storage.user_cache import expanded, user_cache_folder


def test_the_folder_is_that_of_xdg_or_below_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_cache_folder() == Path("/x/flowtrain")
    for unset in ("", "relative", "~/mine", "~nosuchuser/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache_folder() == tmp_path / ".cache" / "flowtrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_folder() == tmp_path / ".cache" / "flowtrain"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user whom no file names and no variable gives a home; returns where temporary files are."""

    def nobody(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_folder_is_a_temporary_one_of_the_users_own(no_home: Path) -> None:
    folder = user_cache_folder()
    assert folder.parent == no_home
    assert folder.stat().st_mode & 0o777 == 0o700
    assert user_cache_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(UserError, match="open to others; set XDG_CACHE_HOME"):
        user_cache_folder()
    folder.rmdir()
    folder.symlink_to("/")
    with pytest.raises(UserError, match="open to others"):
        user_cache_folder()


def test_a_home_that_is_not_there_stays_in_the_path(no_home: Path) -> None:
    assert expanded("~/photos") == Path("~/photos")
    assert expanded("~nosuchuser/photos") == Path("~nosuchuser/photos")
    assert expanded("photos") == Path("photos")
