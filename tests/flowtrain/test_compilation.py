from pathlib import Path

import jax
import pytest

from flowtrain.compilation import enable_compilation_cache


def test_the_environment_goes_before_the_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "flowtrain" / "jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
