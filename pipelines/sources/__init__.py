"""Sources of images by name: `open_source` turns what a person typed into a `Source`.

base: what a source is.
folder, tar, zip: trees of named files; listed: what these have in common.
tarwalk, zipdirectory: the members of an archive, by its headers; ranges: a part of a file.
tfds, tfds_builder: prepared TensorFlow Datasets; parquet, parquet_files: Hugging Face's layout.
embedded, digits: images that need no download.
ilsvrc: ImageNet's development kit; names: which files are images; refused: items known to be bad.
keeper: the last few large things, made once for all threads.
"""

import re
from collections.abc import Callable

from pipelines.sources.base import UNLABELLED, Item, Picture, Source
from pipelines.sources.digits import DigitsSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.tar import TarSource
from pipelines.sources.tfds import TfdsSource
from pipelines.sources.zip import ZipSource
from schemas.errors import UserError
from schemas.storage.paths import is_url

__all__ = ["UNLABELLED", "Item", "Picture", "Source", "check_is_no_source", "open_source"]

EMBEDDED: dict[str, Callable[[str], Source]] = {"digits": DigitsSource}


def open_source(descriptor: str, split: str) -> Source:
    """Open a folder of images, by path or URL, or another kind of source after its scheme.

    Raises:
        UserError: unknown kind or name, or nothing there.
    """
    if is_url(descriptor):
        return FolderSource(descriptor, split)
    scheme, separator, rest = descriptor.partition(":")
    # One letter before a colon is a drive; a name with a slash before the colon is a path.
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return FolderSource(descriptor, split)
    if scheme not in SCHEMES:
        raise UserError(
            f"{descriptor}: unknown kind of source {scheme + ':'!r}; known are a folder of images, "
            f"{', '.join(f'{name}:{what}' for name, (what, _) in SCHEMES.items())}"
        )
    _, make = SCHEMES[scheme]
    return make(rest, split)


def check_is_no_source(out: str) -> None:
    """Refuse what can only be meant as a source where a dataset is to be written.

    Raises:
        UserError: it begins with the scheme of a source.
    """
    scheme, colon, _ = out.partition(":")
    if colon and scheme in SCHEMES:
        raise UserError(
            f"{out} names a source, and a dataset goes to a directory; give a path, s3:// or gs://"
        )


def _open_embedded(name: str, split: str) -> Source:
    if name not in EMBEDDED:
        raise UserError(f"embedded:{name}: no such embedded source; known: {', '.join(EMBEDDED)}")
    return EMBEDDED[name](split)


# What comes after the colon, and who opens it.
SCHEMES: dict[str, tuple[str, Callable[[str, str], Source]]] = {
    "tar": ("FILE[,FILE]", TarSource),
    "zip": ("FILE[,FILE]", ZipSource),
    "tfds": ("NAME[@DATA_DIR]", TfdsSource),
    "parquet": ("PATH", ParquetSource),
    "embedded": ("NAME", _open_embedded),
}
