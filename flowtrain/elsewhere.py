"""What other packages do for `flowtrain train`, with the types that the trainer relies on.

The trainer imports neither `pipelines` nor `evaluation`, which stand beside and above it: their
code is named here by strings, and imported when a run first needs it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from schemas.errors import UserError

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel
    from flowtrain.train import PreviewResult
    from schemas.manifest import Manifest
    from schemas.run import Run


class RemoteDataset(Protocol):
    """A finished dataset in an object store: its URL and its manifest."""

    @property
    def root(self) -> str: ...
    @property
    def manifest(self) -> "Manifest": ...


class PreviewMaker(Protocol):
    """`evaluation.preview.preview.make_preview`."""

    def __call__(
        self,
        run: "Run",
        dataset: Path,
        reference: Path | None,
        notify: Callable[[str], None],
        *,
        directory: Path | None,
        make_bar: Callable[..., Any] | None,
    ) -> "Callable[[TrainedModel], PreviewResult]": ...


def open_remote_dataset(url: str) -> RemoteDataset:
    """A dataset in an object store, of which the manifest alone is read. Needs no Beam.

    Raises:
        UserError: nothing there, unfinished, damaged, of another release, or a package is missing.
    """
    return _dataset_module("pipelines.dataset.anywhere").open_dataset(url)


def staged_bytes(url: str) -> int:
    """Bytes of the files that `stage` tells its progress in.

    Raises:
        UserError: as `open_remote_dataset`.
    """
    return _dataset_module("pipelines.dataset.download").staged_bytes(url)


def stage(url: str, directory: Path, progress: Callable[[int], object]) -> Path:
    """A copy of the dataset at `url` below a local directory, where it stays for the next run.

    Args:
        url: `gs://` or `s3://`.
        directory: where copies are kept.
        progress: told the bytes of each file that has come.

    Raises:
        UserError: as `open_remote_dataset`; a file is missing or damaged, the store or the disk
            fails, or there is no room.
    """
    return _dataset_module("pipelines.dataset.download").stage(url, directory, progress)


def preview_maker() -> PreviewMaker:
    """The function that prepares previews while training.

    Raises:
        UserError: a package is missing.
    """
    module = _module(
        "evaluation.preview.preview", "previews need", "install it, or set preview.every=0"
    )
    return module.make_preview


def check_protocol(name: str) -> None:
    """Whether previews can be measured by a protocol of this name.

    Raises:
        UserError: there is none, or a package is missing.
    """
    module = _module("evaluation.protocols", "previews need", "install it, or set preview.every=0")
    module.find_protocol(name)


def _dataset_module(name: str) -> ModuleType:
    return _module(
        name,
        "a dataset in an object store needs",
        "install it, or copy the dataset to a local disk and train on the copy",
    )


def _module(name: str, need: str, advice: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{need} the package {error.name}, which is not installed; {advice}"
        ) from None
