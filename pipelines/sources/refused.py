"""Items that a listing already knows to be unusable: listed, and rejected when read."""

from pipelines.images import ImageError
from pipelines.sources.base import Item

_REFUSED = "\0"  # begins the location of such an item, before the reason: no path holds it


def refused(
    key: str, reason: str, size: int = 0, modified: int = 0, label: int = 0, group: str = ""
) -> Item:
    """An item that is rejected for a reason."""
    return Item(key, label, size, _REFUSED + reason, modified, group)


def check_usable(item: Item) -> None:
    """Raise the reason of a refused item.

    Raises:
        ImageError: it is one.
    """
    if item.location.startswith(_REFUSED):
        raise ImageError(item.location.removeprefix(_REFUSED))
