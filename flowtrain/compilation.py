"""JAX's persistent compilation cache, so that a step function is compiled once for a machine, not once a command."""

import os
from pathlib import Path


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory. What `JAX_COMPILATION_CACHE_DIR` says goes first.

    Call it in a command before anything is compiled. An entry is keyed by the program, the flags and the versions,
    so a stale one is never used.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "flowtrain" / "jax"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
