"""How this process connects to object stores; apart from the stores, so that a package can say so
while it is imported and import nothing for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.storage.store import ObjectStore

# Gives the store of a scheme. Without one the environment says how to connect.
_connect: "Callable[[str], ObjectStore] | None" = None


def connect_with(connect: "Callable[[str], ObjectStore] | None") -> None:
    """From now on this process connects so.

    Args:
        connect: gives the store of a scheme; called for each request, so it keeps connections. An
            ImportError or a RuntimeError means that the store cannot be used on this machine. None:
            by the environment.
    """
    global _connect
    _connect = connect


def connected_with() -> "Callable[[str], ObjectStore] | None":
    """What `connect_with` was given last; None where it was never called."""
    return _connect
