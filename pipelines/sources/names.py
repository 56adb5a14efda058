"""File names in a source: which are images, which are left out, how names are written."""

import posixpath

from pipelines.images import SUFFIXES

# Images by their names, of kinds that are not decoded here: listed all the same, so that they are
# rejected by name and not left out in silence.
OTHER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".jxl", ".heic", ".heif"})

_IMAGES = SUFFIXES | OTHER_SUFFIXES
LEADS_OUT = "its name leads out of the archive"

# What a file of a tree is: an image, a list that may hold the labels of images, or neither.
IMAGE, LIST, OTHER = "image", "list", "other"
DATASET_JSON = "dataset.json"
METADATA = ("metadata.jsonl", "metadata.csv")
_LISTS = frozenset({DATASET_JSON, *METADATA})

# Folders that operating systems, file servers and their programs make beside a user's, in small
# letters; those that begin with a dot are hidden anyway.
_SYSTEM = frozenset(
    {
        "__macosx",  # macOS, in a zip
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        "$recycle.bin",  # Windows
        "system volume information",
        "lost+found",  # ext4, XFS
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "~snapshot",  # NetApp
        "_gsdata_",  # GoodSync
    }
)


def is_image(name: str) -> bool:
    """Whether a file is an image, by its extension."""
    _, dot, extension = name.rpartition(".")
    return dot + extension.lower() in _IMAGES


def kind_of(name: str) -> str:
    """What a file is, by its name: IMAGE, LIST or OTHER."""
    if is_image(name):
        return IMAGE
    return LIST if name.rpartition("/")[2] in _LISTS else OTHER


def is_hidden(name: str) -> bool:
    """Whether a file or one of the folders above it is hidden or the system's, and so left out."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part.lower() in _SYSTEM for part in parts)


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


def written(text: str) -> str:
    """Text from a list as valid UTF-8 on one line: JSON may hold half a surrogate pair."""
    return readable(text.encode("utf-8", "backslashreplace").decode())


def key_of(folder: str, name: str, base: str) -> str | None:
    """Key of an image that a list in `folder` names, in a tree whose keys are relative to `base`;
    both end with a slash, or are "". None of an image elsewhere.
    """
    try:
        key = readable(posixpath.normpath(folder + name))
    except UnicodeEncodeError:  # half a surrogate pair, as JSON may have it and no file can
        return None
    start = readable(base)
    return key.removeprefix(start) if key.startswith(start) else None
