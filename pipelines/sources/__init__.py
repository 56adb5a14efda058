"""Sources of images by name: `open_source` turns what a person typed into a `Source`.

base: what a source is.
folder, tar, zip: trees of named files; listed: what these have in common.
labels: how images of a tree get their classes; dataset_json, metadata: files that list them.
splits: trees of train/ and val/; inside: a folder of an archive; left_out: files but images.
tarwalk, zipdirectory: the members of an archive, by its headers; ranges: a part of a file.
tfds, tfds_builder: prepared TensorFlow Datasets.
parquet: Hugging Face's layout; parquet_splits, parquet_columns, parquet_files: which files of a
folder, which columns of a file, and what they tell; arrow_files: the same saved to disk.
label_values: numbers or texts as classes.
wds: WebDataset shards; shards: which these are; wds_samples: the members of one.
embedded, digits: images that need no download.
ilsvrc: ImageNet's development kit; names: which files are images; refused: items known to be bad.
options: what a person says of a source beside its place.
keeper: the last few large things, made once for all threads.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from pipelines.sources.base import UNLABELLED, Item, Picture, Source
from pipelines.sources.digits import DigitsSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.options import OF_FILES, SourceOptions, split_options
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.tar import TarSource
from pipelines.sources.tfds import TfdsSource
from pipelines.sources.wds import WdsSource
from pipelines.sources.zip import ZipSource
from schemas.errors import UserError
from schemas.storage.url import is_url

__all__ = ["UNLABELLED", "Item", "Picture", "Source", "check_is_no_source", "open_source"]

EMBEDDED: dict[str, Callable[[str], Source]] = {"digits": DigitsSource}


def open_source(descriptor: str, split: str) -> Source:
    """Open a folder of images, by path or URL, or another kind of source after its scheme.

    What follows a `#` at the end says how to read it (`SourceOptions`).

    Raises:
        UserError: unknown kind or name, nothing there, or options that such a source has not.
    """
    place, options = split_options(descriptor)
    scheme, separator, rest = place.partition(":")
    # One letter before a colon is a drive; a name with a slash before the colon is a path.
    named = separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme)
    if is_url(place) or not named:
        options.check(_FOLDER_OPTIONS, place)
        return FolderSource(place, split, options)
    if scheme not in SCHEMES:
        raise UserError(
            f"{place}: unknown kind of source {scheme + ':'!r}; known are a folder of images, "
            f"{', '.join(f'{name}:{kind.what}' for name, kind in SCHEMES.items())}"
        )
    kind = SCHEMES[scheme]
    options.check(kind.options, place)
    return kind.open(rest, split, options)


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


def _open_embedded(name: str, split: str, options: SourceOptions) -> Source:
    if name not in EMBEDDED:
        raise UserError(f"embedded:{name}: no such embedded source; known: {', '.join(EMBEDDED)}")
    return EMBEDDED[name](split)


def _open_tfds(name: str, split: str, options: SourceOptions) -> Source:
    return TfdsSource(name, split)


class _Kind(NamedTuple):
    """What comes after the colon, who opens it, and which options say something about it."""

    what: str
    open: Callable[[str, str, SourceOptions], Source]
    options: frozenset[str] = frozenset()


_FOLDER_OPTIONS = OF_FILES | {"classes", "label"}
_TABLE_OPTIONS = _FOLDER_OPTIONS | {"image"}
SCHEMES: dict[str, _Kind] = {
    "tar": _Kind("FILE[,FILE]", TarSource, _FOLDER_OPTIONS),
    "zip": _Kind("FILE[,FILE]", ZipSource, _FOLDER_OPTIONS),
    "tfds": _Kind("NAME[@DATA_DIR]", _open_tfds),
    "wds": _Kind("SHARDS", WdsSource, _TABLE_OPTIONS),
    "parquet": _Kind("PATH", ParquetSource, _TABLE_OPTIONS),
    "embedded": _Kind("NAME", _open_embedded),
}
