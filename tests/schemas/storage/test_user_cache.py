from pathlib import Path

import pytest

from schemas.storage.user_cache import user_cache_folder


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
