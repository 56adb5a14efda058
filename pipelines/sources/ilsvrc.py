"""ILSVRC2012's development kit: the synsets, and the labels of the validation images.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015.
`ILSVRC2012_devkit_t12.tar.gz` holds `data/meta.mat`, a table of synsets numbered by ILSVRC2012_ID,
and `data/ILSVRC2012_validation_ground_truth.txt`, the number of the synset of one validation image
a line. Classes are the synsets in the order of their WordNet IDs.
"""

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass

from pipelines.images import ImageError
from pipelines.sources.labels import ByFolder, Labelling
from schemas.errors import UserError
from schemas.storage import paths

META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_SHOWN = 5  # names in a message


def is_devkit(path: str) -> bool:
    """Whether a file of a tar source is taken for a devkit: a compressed tar named so."""
    return re.search(r"devkit[^/]*\.(tar\.gz|tgz)$", path) is not None


@dataclass(frozen=True)
class Devkit:
    """Synsets by their numbers, and the numbers of the validation images in order.

    Args:
        path: where it was read from, for messages.
        synsets: WordNet IDs by ILSVRC2012_ID, of the leaves only.
        truth: ILSVRC2012_ID of each validation image, the first one's first.
    """

    path: str
    synsets: dict[int, str]
    truth: tuple[int, ...]

    def training(self, folders: frozenset[str], where: str) -> ByFolder:
        """Labels by the synset that a training image lies in.

        Raises:
            UserError: `folders` are not exactly the synsets.
        """
        known = set(self.synsets.values())
        for names, what in (
            (known - folders, "lacks"),
            (folders - known, "holds what the devkit does not know:"),
        ):
            if names:
                shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                raise UserError(
                    f"{where}: {what} {shown} ({len(names)} of {len(known)} synsets); "
                    "fetch the archive again, or leave out the devkit"
                )
        return ByFolder(folders)

    def validation(self) -> "ValidationLabels":
        """Labels by the number in the name of a validation image."""
        return ValidationLabels(self)


class ValidationLabels(Labelling):
    """Classes by ground truth: its line n is the synset of validation image number n."""

    def __init__(self, devkit: Devkit):
        self.classes = tuple(sorted(devkit.synsets.values()))
        labels = {name: label for label, name in enumerate(self.classes)}
        self._labels = [labels[devkit.synsets[number]] for number in devkit.truth]

    def label(self, name: str) -> int:
        """Class of a validation image.

        Raises:
            ImageError: not the name of one, or a number beyond the ground truth.
        """
        match = _NUMBER.fullmatch(name)
        if match is None:
            raise ImageError("not named like a validation image of ILSVRC2012, so it has no label")
        number = int(match[1])
        if not 1 <= number <= len(self._labels):
            raise ImageError(
                f"the devkit has labels of {len(self._labels)} validation images, and this is "
                f"{number}"
            )
        return self._labels[number - 1]


def read_devkit(path: str) -> Devkit:
    """Read a devkit, a few MB.

    Raises:
        UserError: not there, damaged, or without one of the two files.
    """
    try:
        data = paths.read(path)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            members = {member.name: member for member in archive if member.isreg()}
            meta, truth = (_content(archive, members, name, path) for name in (META, GROUND_TRUTH))
    except (OSError, EOFError, tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: not a readable devkit of ILSVRC2012 ({error}); fetch it again"
        ) from error
    synsets = _synsets(meta, path)
    try:
        numbers = tuple(map(int, truth.split()))
    except ValueError as error:
        raise UserError(
            f"{path}: {GROUND_TRUTH} holds something that is no number ({error}); fetch it again"
        ) from error
    if unknown := set(numbers) - synsets.keys():
        raise UserError(
            f"{path}: {GROUND_TRUTH} names {min(unknown)}, which is no synset of {META}; fetch it "
            "again"
        )
    return Devkit(path, synsets, numbers)


def _content(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, path: str
) -> bytes:
    found = next(
        (member for key, member in members.items() if f"/{key}".endswith(f"/{name}")), None
    )
    file = archive.extractfile(found) if found is not None else None
    if file is None:
        raise UserError(
            f"{path}: holds no {name}; the devkit of ILSVRC2012 is ILSVRC2012_devkit_t12.tar.gz"
        )
    return file.read()


def _synsets(meta: bytes, path: str) -> dict[int, str]:
    """WordNet IDs by number, of leaves alone: synsets with children have no images."""
    import numpy as np
    from scipy.io import loadmat

    try:
        table = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        rows = [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"])) for row in table
        ]
    except Exception as error:  # loadmat raises whatever its parser stumbles on
        raise UserError(
            f"{path}: {META} is not the table of synsets it should be ({error}); fetch it again"
        ) from error
    return {number: name for number, name, children in rows if not children}
