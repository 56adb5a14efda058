"""Which paths are URLs of an object store; apart from the stores, so that a command's options are
checked without them.
"""

import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether a path names an object store rather than the local disk."""
    return _SCHEME.match(path) is not None
