"""The same tree of files as a folder, as a tar and as a zip."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.images import ImageError
from pipelines.sources import Source
from tests.pipelines.sources.miniature import add
from tests.pipelines.sources.prepared import make_zip

KINDS = ("folder", "tar", "zip")


def plant(root: Path, kind: str, files: Mapping[str, bytes]) -> str:
    """The name of a source of these files, made below `root`, where only one may be."""
    if kind == "zip":
        return f"zip:{make_zip(root / 'tree.zip', files)}"
    if kind == "tar":
        with tarfile.open(root / "tree.tar", "w") as archive:
            for name, data in files.items():
                add(archive, name, data)
        return f"tar:{root / 'tree.tar'}"
    for name, data in files.items():
        path = root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root / "tree")


def images(*names: str) -> dict[str, bytes]:
    """Files that are images by their names; only to be listed."""
    return dict.fromkeys(names, b"x")


def labelled(source: Source) -> dict[str, str]:
    """Class, or after a ! why there is none, by key."""
    found = {}
    for item in source.index():
        try:
            source.read(item)
        except ImageError as error:
            unlisted = "label" in error.reason or "not in" in error.reason
            name = f"!{error.reason}" if unlisted else source.classes[item.label]
        else:
            name = source.classes[item.label]
        assert item.key not in found
        found[item.key] = name
    return found
