"""Reads PyTorch's weight files without PyTorch and without running their pickles.

A pickle is a program: whoever loads one runs it. The reader below knows the handful of names that a
state dict needs, each bound to a plain record of its own, and refuses every other name before
anything is called.

Both formats are read: the zip archive of PyTorch 1.6 and later (`data.pkl`, with one member a
storage under `data/`), and the older stream of five pickles (magic number, protocol, system,
object, storage keys) followed by the raw storages. Their layout is that of
`torch/serialization.py`.

A TorchScript archive (`torch.jit.save`) is a zip archive too, whose `data.pkl` builds a tree of
modules. All of its classes become one record that keeps its attributes, and the tree gives the
tensors their names, as `state_dict` would. The program under `code/` is not read.
"""

import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from schemas.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_Order = Literal["<", ">"]
_BFLOAT16 = "bfloat16"  # NumPy has no such type
_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict (`torch.save`) or of a module (`torch.jit.save`), by name.

    A mapping whose `state_dict` entry is itself a mapping (a training checkpoint) gives that entry.
    bfloat16 becomes float32, every other type stays; arrays are read-only views, which may share
    memory where the tensors did, and may show elements many times over (strides of 0): look at
    their shapes before copying them. Tensors of a module are named by the attributes that lead to
    them; those within lists and dictionaries are left out.

    Raises:
        UserError: no such file, another format, a truncated file, a tensor outside its storage,
            something that is no flat mapping of names to tensors and no module, or a pickle that
            asks for names which these do not need.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .pth file with weights")
    with _explained(path), path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        content = _read_archive(file) if head == b"PK\x03\x04" else _read_stream(file)
        return _resolve(content)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign file sets off into one line about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: truncated or damaged ({error or 'it ends too early'}); fetch it again"
        ) from None
    except Exception as error:  # a hostile pickle can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{path}: not a PyTorch weight file ({reason}); give a state dict (.pth)"
        ) from None


class _Inert:
    """What a pickle may hold: nothing of it is state that the pickle could set."""

    def __setstate__(self, state: object) -> None:
        pass


@dataclass
class _Storage(_Inert):
    """Memory that tensors look into; `values` comes in after the pickle was read."""

    key: str
    code: str
    numel: int
    values: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * (2 if self.code == _BFLOAT16 else np.dtype(self.code).itemsize)

    def fill(self, data: bytes, order: _Order) -> None:
        """Interpret the raw bytes."""
        if self.code == _BFLOAT16:  # the upper half of a float32
            self.values = (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(
                np.float32
            )
        else:
            kind = np.dtype(self.code)
            self.values = np.frombuffer(data, kind.newbyteorder(order)).astype(kind, copy=False)


@dataclass
class _Window(_Inert):
    """Elements [start, start + numel) of a storage; old files name such views."""

    storage: _Storage
    start: int
    numel: int


class _StateDict(_Inert, dict):  # type: ignore[type-arg]
    """Stands for `collections.OrderedDict`; drops the `_metadata` that PyTorch hangs on it."""


class _Tensor(_Inert):
    """Stands for `torch._utils._rebuild_tensor_v2`: a place in a storage, unchecked."""

    def __init__(self, window: Any, offset: Any, shape: Any, strides: Any, *_: object):
        self.window, self.offset, self.shape, self.strides = window, offset, shape, strides

    def resolve(self) -> np.ndarray:
        """The array, as a read-only view.

        Raises:
            UserError: it does not lie within its storage.
        """
        shape, strides = tuple(self.shape), tuple(self.strides)
        numbers = (self.offset, *shape, *strides)
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not whole or len(shape) != len(strides):
            raise UserError("a tensor with an impossible shape; fetch the file again")
        values = self.window.storage.values[self.window.start :]
        if 0 in shape:
            return np.zeros(shape, values.dtype)
        axes = zip(shape, strides, strict=True)
        end = self.offset + sum((size - 1) * stride for size, stride in axes) + 1
        if end > min(self.window.numel, len(values)):
            raise UserError(
                f"a tensor reaches element {end} of a storage of {self.window.numel}; fetch the "
                "file again"
            )
        steps = [stride * values.itemsize for stride in strides]
        return as_strided(values[self.offset :], shape, steps, writeable=False)


class _FirstArgument(_Inert):
    """Stands for functions that return their first argument: parameters, typed lists."""

    def __new__(cls, data: Any, *_: object) -> Any:
        return data


class _Module:
    """Stands for every class of a TorchScript archive, and keeps its attributes alone."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise UserError("a module whose state is no mapping of names; give a state dict (.pth)")
        self.attributes = state


class _StorageType(_Inert):
    """Stands for `torch.FloatStorage` and its like."""

    def __init__(self, code: str):
        self.code = code


_KNOWN: Mapping[tuple[str, str], Callable[..., Any] | _StorageType] = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _FirstArgument,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _FirstArgument
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): _FirstArgument,
    **{("torch", name): _StorageType(code) for name, code in _STORAGES.items()},
}
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_COMPILED = re.compile(r"__torch__(\.\w+)*")  # modules of classes within a TorchScript archive


@dataclass
class _Storages:
    """The storages that a pickle named, and the windows on them."""

    limit: int  # bytes: no storage can be larger than its file
    by_key: dict[str, _Storage] = field(default_factory=dict)

    def find(self, saved_id: Any) -> _Window:
        """The window of a persistent id ("storage", type, key, device, elements, [view])."""
        tag, kind, key, _, numel, *view = saved_id
        typed = type(key) is str and type(numel) is int
        if tag != "storage" or not isinstance(kind, _StorageType) or not typed:
            raise UserError("it holds something else than tensors; give a state dict (.pth)")

        storage = self.by_key.setdefault(key, _Storage(key, kind.code, numel))
        same = storage.code == kind.code and storage.numel == numel
        if not same or not 0 <= storage.nbytes <= self.limit:
            raise UserError(f"storage {key!r} does not fit into the file; fetch it again")

        if view and view[0]:
            _, start, length = view[0]
            return _view(storage, start, length)
        return _Window(storage, 0, numel)


def _view(storage: _Storage, start: Any, length: Any) -> _Window:
    """Part of a storage, as old files hand it out."""
    whole = type(start) is int and type(length) is int
    if not whole or not 0 <= start <= start + length <= storage.numel:
        raise UserError(f"a view leaves storage {storage.key!r}; fetch the file again")
    return _Window(storage, start, length)


class _Unpickler(pickle.Unpickler):
    """Builds records out of a pickle, and calls nothing but those of `_KNOWN`."""

    def __init__(self, file: IO[bytes], storages: _Storages | None = None):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if self._storages is not None:
            if (module_name, global_name) in _KNOWN:
                return _KNOWN[module_name, global_name]
            if _COMPILED.fullmatch(module_name) and global_name.isidentifier():
                return _Module
        name = f"{module_name}.{global_name}"
        raise UserError(
            f"it asks for {name[:60]!r}, which no weights need: refused, nothing of it was run"
        )

    def persistent_load(self, pid: Any) -> _Window:
        if self._storages is None:
            raise UserError("it holds a tensor in an unexpected place; give a state dict (.pth)")
        return self._storages.find(pid)


def _unpickle(file: IO[bytes], storages: _Storages | None = None) -> Any:
    """The object that a pickle at the file's position builds; the position is behind it then.

    A memo is as long as its largest index, which a pickle of a few bytes may choose: it is looked
    at first.
    """
    begin = file.tell()
    for operation, argument, position in pickletools.genops(file):
        if operation.name in _MEMO and int(argument or 0) > int(position or 0):
            raise UserError("a pickle that is built to take memory; give a state dict (.pth)")
    file.seek(begin)
    return _Unpickler(file, storages).load()


def _read_archive(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError("a zip archive without PyTorch's data.pkl; give a state dict (.pth)")
        root = roots[0]
        # before a byte of a member is read
        _check_uncompressed(members, (f"{root}data.pkl", f"{root}data/", f"{root}byteorder"))
        order = _archive_order(archive, f"{root}byteorder")
        storages = _Storages(limit=sum(member.file_size for member in members.values()))
        with archive.open(f"{root}data.pkl") as stream:
            content = _unpickle(io.BytesIO(stream.read()), storages)
        for key, storage in storages.by_key.items():
            member = members.get(f"{root}data/{key}")
            if member is None or member.file_size != storage.nbytes:
                raise UserError(f"storage {key!r} is missing or cut; fetch the file again")
            storage.fill(archive.read(member), order)
        return content


def _check_uncompressed(members: Mapping[str, zipfile.ZipInfo], prefixes: tuple[str, ...]) -> None:
    """Refuse compressed members, which could unpack to any size."""
    read = [member for name, member in members.items() if name.startswith(prefixes)]
    if any(member.compress_type != zipfile.ZIP_STORED for member in read):
        raise UserError(
            "a compressed archive, which PyTorch does not write; give a state dict (.pth)"
        )


def _archive_order(archive: zipfile.ZipFile, name: str) -> _Order:
    """The order of bytes that a member tells; archives without it are of before it was told."""
    if name not in archive.namelist():
        return "<"
    return ">" if archive.read(name) == b"big" else "<"


def _read_stream(file: IO[bytes]) -> Any:
    size = file.seek(0, 2)
    file.seek(0)
    try:
        magic = _unpickle(file)
    except UserError:  # a bare pickle, and not a harmless one
        raise
    except Exception:
        magic = None
    if magic != _MAGIC:
        raise UserError("not a PyTorch weight file; give a state dict (.pth)")
    if _unpickle(file) != _PROTOCOL:
        raise UserError(
            "an unknown version of PyTorch's old format; save it again with a newer PyTorch"
        )
    system = _unpickle(file)
    order: _Order = "<" if system.get("little_endian", True) else ">"
    storages = _Storages(limit=size)
    content = _unpickle(file, storages)
    for key in _unpickle(file):
        numel = struct.unpack(f"{order}q", _exactly(file, 8))[0]
        storage = storages.by_key[key]
        if numel != storage.numel:
            raise UserError(
                f"storage {key!r} has {numel} elements instead of {storage.numel}; fetch the file "
                "again"
            )
        storage.fill(_exactly(file, storage.nbytes), order)
    return content


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _resolve(content: Any) -> dict[str, np.ndarray]:
    if isinstance(content, _Module):
        return {name: tensor.resolve() for name, tensor in _attributes(content, "", set())}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError("it holds no mapping of names to tensors; give a state dict (.pth)")
    for name, value in content.items():
        if type(name) is not str or type(value) is not _Tensor:
            raise UserError(f"entry {str(name)[:60]!r} is no tensor; give a flat state dict (.pth)")
    return {name: tensor.resolve() for name, tensor in content.items()}


def _attributes(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, _Tensor]]:
    """The tensors within a module, with their names; `seen` are the modules before it."""
    # a few hundred bytes could stand for any number of names, or for a circle
    if id(module) in seen:
        raise UserError(f"module {prefix[:60]!r} is in two places; give a state dict (.pth)")
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _attributes(value, f"{prefix}{name}.", seen)
