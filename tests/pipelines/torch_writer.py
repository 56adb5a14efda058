"""Writes PyTorch's two file formats without PyTorch."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np


class Named:
    """Pickled as a global: `torch.FloatStorage` and the like, which do not exist here."""

    def __init__(self, name: str):
        self.name = name


class Call:
    """Pickled as a call of a global with arguments, then of a state if there is one."""

    def __init__(self, name: str, *arguments: Any, state: Any = None):
        self.name, self.arguments, self.state = name, arguments, state


class Module:
    """Pickled as TorchScript pickles a module: made without arguments, then given its
    attributes.
    """

    def __init__(self, name: str, attributes: dict[str, Any]):
        self.name, self.attributes = name, attributes


class Stored:
    """Pickled as a persistent id."""

    def __init__(self, kind: str, key: str, numel: int, *view: Any):
        self.saved_id = ("storage", Named(f"torch {kind}"), key, "cpu", numel, *view)


# The pure Python one lets names be written that cannot be imported; type stubs hide it.
_Pickler: Any = vars(pickle)["_Pickler"]


class TorchPickler(_Pickler):
    """Writes the pickles that PyTorch writes."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.saved_id if isinstance(obj, Stored) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(b"c" + obj.name.replace(" ", "\n").encode() + b"\n")
        elif isinstance(obj, Call):
            self.save(Named(obj.name))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Module) and id(obj) not in self.memo:
            self.save(Named(obj.name))
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.memoize(obj)
            self.save(obj.attributes)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    TorchPickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def tensor(stored: Any, offset: Any, shape: Any, strides: Any) -> Call:
    return Call(
        "torch._utils _rebuild_tensor_v2", stored, offset, shape, strides, False, OrderedDict()
    )


def module_tree(tensors: dict[str, Any]) -> Module:
    """Modules within modules whose attributes lead to the tensors, as their names with dots say."""
    root = Module("__torch__.net Net", {"training": True, "_is_full_backward_hook": None})
    for name, value in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            empty = Module(
                f"__torch__.torch.nn.___torch_mangle_{len(path)} Part", {"training": False}
            )
            module = module.attributes.setdefault(part, empty)
        module.attributes[last] = value
    return root


def write_archive(path: Path, content: Any, storages: dict[str, bytes], **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled(content))
        for name, data in {
            **members,
            **{f"data/{key}": data for key, data in storages.items()},
        }.items():
            archive.writestr(f"weights/{name}", data)
    return path


def write_stream(path: Path, content: Any, storages: dict[str, bytes], item: int = 4) -> Path:
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    parts = [
        pickled(value) for value in (0x1950A86A20F9469CFC6C, 1001, system, content, list(storages))
    ]
    parts += [struct.pack("<q", len(data) // item) + data for data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def write_state_dict(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A state dict of float16 tensors, one storage each, as `torch.save` writes it."""
    content = {}
    for name, value in tensors.items():
        strides = tuple(step // value.itemsize for step in np.ascontiguousarray(value).strides)
        content[name] = tensor(Stored("HalfStorage", name, value.size), 0, value.shape, strides)
    return write_archive(
        path, content, {name: value.astype("<f2").tobytes() for name, value in tensors.items()}
    )
