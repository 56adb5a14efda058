"""JAX's persistent compilation cache: a function is compiled once a machine."""

import os

from schemas.storage.user_cache import user_cache_folder


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless the environment says where.

    Through the environment and not `jax.config`, so that JAX is not imported and worker processes
    inherit it. Call it before JAX is imported. An entry is keyed by the program, the flags and the
    versions: a stale one is never used.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(user_cache_folder() / "jax")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
