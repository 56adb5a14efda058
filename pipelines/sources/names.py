"""File names in a source: which are images, which are left out, how names are written."""

from pipelines.images import SUFFIXES

# Images by their names, of kinds that are not decoded here: listed all the same, so that they are
# rejected by name and not left out in silence.
OTHER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".jxl", ".avif", ".heic", ".heif"})

_IMAGES = SUFFIXES | OTHER_SUFFIXES
LEADS_OUT = "its name leads out of the archive"

_MAC_COPIES = "__MACOSX"  # where macOS puts its side files in a zip


def is_image(name: str) -> bool:
    """Whether a file is an image, by its extension."""
    _, dot, extension = name.rpartition(".")
    return dot + extension.lower() in _IMAGES


def is_hidden(name: str) -> bool:
    """Whether a file or one of the folders above it is hidden, and so left out."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == _MAC_COPIES for part in parts)


def plain(name: str) -> str:
    """An archive member's name without `./` and doubled slashes; a folder keeps its last slash."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    start, end = "/" * name.startswith("/"), "/" * (name.endswith("/") and bool(parts))
    return start + "/".join(parts) + end


def leads_out(name: str) -> bool:
    """Whether the name of an archive's member points out of the archive."""
    return name.startswith("/") or ".." in name.split("/")


def readable(name: str) -> str:
    """A name as valid UTF-8 on one line; other bytes and line ends become escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")
