"""JAX's persistent compilation cache: a function is compiled once a machine."""

import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless the environment says where.

    Through the environment and not `jax.config`, so that it imports nothing and worker processes
    inherit it. Call it before JAX is imported. An entry is keyed by the program, the flags and the
    versions: a stale one is never used.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(base) / "flowtrain" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
