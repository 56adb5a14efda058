"""The folder for files that can be made or fetched again: weights, datasets, compiled programs."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/flowtrain`, else `~/.cache/flowtrain`.

    A relative `XDG_CACHE_HOME` is left out, as the XDG Base Directory Specification asks for.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = base if base.is_absolute() else Path.home() / ".cache"
    return root / "flowtrain"
