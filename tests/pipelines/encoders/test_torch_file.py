"""PyTorch's two file formats, made by hand: PyTorch is not needed here (tests/parity has its own
files).
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.encoders.torch_file import read_torch_file
from schemas.errors import UserError
from tests.pipelines.torch_writer import (
    Call,
    Module,
    Named,
    Stored,
    TorchPickler,
    module_tree,
    pickled,
    tensor,
    write_archive,
    write_stream,
)

A = np.arange(12, dtype="<f4")
B = np.array([3, -4], "<i8")
HALVES = np.array([0x3F80, 0xC040], "<u2")  # bfloat16 1.0 and -3.0


def state_dict() -> Call:
    """Two views of one storage, a parameter of another, a bfloat16; with the `_metadata` that
    PyTorch adds.
    """
    entries = [
        ["rows", tensor(Stored("FloatStorage", "0", 12), 4, (2, 4), (4, 1))],
        ["transposed", tensor(Stored("FloatStorage", "0", 12), 0, (4, 3), (1, 4))],
        [
            "int",
            Call(
                "torch._utils _rebuild_parameter",
                tensor(Stored("LongStorage", "1", 2), 1, (), ()),
                True,
                None,
            ),
        ],
        ["brain", tensor(Stored("BFloat16Storage", "2", 2), 0, (2,), (1,))],
        ["empty", tensor(Stored("FloatStorage", "0", 12), 12, (0, 5), (5, 1))],
    ]
    return Call("collections OrderedDict", entries, state={"_metadata": {"": {"version": 1}}})


def check(found: dict[str, np.ndarray]) -> None:
    assert list(found) == ["rows", "transposed", "int", "brain", "empty"]
    np.testing.assert_array_equal(found["rows"], A.reshape(3, 4)[1:])
    np.testing.assert_array_equal(found["transposed"], A.reshape(3, 4).T)
    assert (found["int"].shape, found["int"].dtype, int(found["int"])) == ((), np.int64, -4)
    assert (found["brain"].dtype, found["brain"].tolist()) == (np.float32, [1.0, -3.0])
    assert found["empty"].shape == (0, 5)
    assert found["rows"].base is not None
    assert not found["rows"].flags.writeable


STORAGES = {"0": A.tobytes(), "1": B.tobytes(), "2": HALVES.tobytes()}


def test_archive(tmp_path: Path) -> None:
    check(
        read_torch_file(write_archive(tmp_path / "w.pth", state_dict(), STORAGES, version=b"3\n"))
    )


def test_archive_of_a_big_endian_machine(tmp_path: Path) -> None:
    swapped = {
        "0": A.astype(">f4").tobytes(),
        "1": B.astype(">i8").tobytes(),
        "2": HALVES.astype(">u2").tobytes(),
    }
    check(
        read_torch_file(write_archive(tmp_path / "w.pth", state_dict(), swapped, byteorder=b"big"))
    )


def test_old_stream_with_a_view_of_a_storage(tmp_path: Path) -> None:
    whole = Stored("FloatStorage", "9", 12, None)
    window = Stored("FloatStorage", "9", 12, ("10", 4, 8))
    content = {"whole": tensor(whole, 0, (12,), (1,)), "part": tensor(window, 1, (2, 3), (4, 1))}
    found = read_torch_file(write_stream(tmp_path / "w.pth", content, {"9": A.tobytes()}))
    np.testing.assert_array_equal(found["whole"], A)
    np.testing.assert_array_equal(found["part"], A.reshape(3, 4)[1:, 1:])


def test_training_checkpoints_give_their_state_dict(tmp_path: Path) -> None:
    content = {"epoch": 3, "state_dict": state_dict()}
    check(read_torch_file(write_archive(tmp_path / "w.pth", content, STORAGES)))


def test_a_module_gives_its_tensors_the_names_of_its_attributes(tmp_path: Path) -> None:
    """Not their order, nor their storages': and what is no tensor is left out."""
    rows = tensor(Stored("FloatStorage", "0", 12), 0, (3, 4), (4, 1))
    ints = tensor(Stored("LongStorage", "1", 2), 0, (2,), (1,))
    tree = module_tree(
        {"body.1.weight": rows, "body.0.weight": ints, "bias": ints, "body.0.tied": rows}
    )
    tree.attributes |= {
        "padding": Call("torch.jit._pickle build_intlist", [1, 0]),
        "kept": Call("torch.jit._pickle build_tensorlist", [rows]),
        "name": "net",
    }
    found = read_torch_file(write_archive(tmp_path / "w.pt", tree, STORAGES, version=b"3\n"))
    assert set(found) == {"body.1.weight", "body.0.weight", "bias", "body.0.tied"}
    np.testing.assert_array_equal(found["body.1.weight"], A.reshape(3, 4))
    np.testing.assert_array_equal(found["body.0.tied"], A.reshape(3, 4))
    np.testing.assert_array_equal(found["bias"], B)


def _within_itself() -> Module:
    """A module in two places, which a few hundred bytes could make billions of names of."""
    inner = Module("__torch__.net Part", {"training": False})
    return Module("__torch__.net Net", {"a": inner, "b": inner})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_within_itself, "module 'b.' is in two places"),
        (lambda: Call("__torch__.net Net", 1), "not a PyTorch weight file"),
        (lambda: Call("__torch__.net Net", state=(1, 2)), "state is no mapping"),
        (lambda: Call("__torch__.net Net", state={3: 4}), "state is no mapping"),
        (lambda: Call("__torch__.os;x system", "x"), "asks for"),
        (lambda: Call("__torch__x system", "x"), "asks for"),
        (
            lambda: Module(
                "__torch__.net Net", {"a": tensor(Module("__torch__.net Net", {}), 0, (1,), (1,))}
            ),
            "not a PyT",
        ),
        (lambda: {"a": Module("__torch__.net Net", {})}, "entry 'a' is no tensor"),
    ],
    ids=[
        "shared",
        "arguments",
        "tuple",
        "number",
        "module",
        "no module",
        "as a storage",
        "within a state dict",
    ],
)
def test_modules_that_are_none(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"w\.pt: [^\n]*{message}"):
        read_torch_file(write_archive(tmp_path / "w.pt", make(), STORAGES))


MARK = "mark"
HOSTILE: dict[str, Callable[[], Any]] = {
    "system": lambda: Call("posix system", f"touch {MARK}"),
    "eval": lambda: Call("builtins eval", f"open('{MARK}', 'w')"),
    "getattr": lambda: Call("builtins getattr", Named("collections OrderedDict"), "fromkeys"),
    "within a tensor": lambda: {"a": tensor(Call("os system", f"touch {MARK}"), 0, (1,), (1,))},
    "within a module we know": lambda: Call("torch._utils _import_dotted_name", "os.system"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_other_names_are_refused_and_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "w.pth", HOSTILE[name](), {})
    with pytest.raises(
        UserError, match=r"w\.pth: it asks for '[\w.]+', which no weights need: refused"
    ):
        read_torch_file(path)
    assert os.listdir() == ["w.pth"]  # noqa: PTH208


def test_a_bare_pickle_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(os.system))
    with pytest.raises(UserError, match=r"'(posix|nt)\.system'.*refused"):
        read_torch_file(path)


def test_a_pickle_cannot_move_a_window(tmp_path: Path) -> None:
    """State given to what stands for a storage is dropped: else its bounds could be overwritten."""
    window = Stored("FloatStorage", "0", 12)

    class Moved:
        def __reduce__(self) -> Any:
            raise AssertionError

    class MovingPickler(TorchPickler):
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Moved):
                super().save(window)
                super().save({"numel": 10**6, "start": 0})
                self.write(pickle.BUILD)
            else:
                super().save(obj, save_persistent_id)

    stream = io.BytesIO()
    MovingPickler(stream, protocol=2).dump({"a": tensor(Moved(), 0, (10**6,), (1,))})
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", stream.getvalue())
        archive.writestr("w/data/0", A.tobytes())
    with pytest.raises(UserError, match="reaches element 1000000 of a storage of 12"):
        read_torch_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (12,), (1,)),
        (0, (3, 4), (5, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (13, (1,), (1,)),
    ],
)
def test_tensors_stay_within_their_storage(
    tmp_path: Path, offset: Any, shape: Any, strides: Any
) -> None:
    content = {"a": tensor(Stored("FloatStorage", "0", 12), offset, shape, strides)}
    for write in (write_archive, write_stream):
        with pytest.raises(UserError, match="fetch the file again"):
            read_torch_file(write(tmp_path / "w.pth", content, {"0": A.tobytes()}))


@pytest.mark.parametrize(
    "stored",
    [
        Stored("FloatStorage", "0", 13),
        Stored("FloatStorage", "0", -1),
        Stored("DoubleStorage", "0", 12),
        Stored("FloatStorage", "1", 12),
        Stored("FloatStorage", "0", 10**15),
        Stored("FloatStorage", "0", 12, ("v", 8, 5)),
    ],
)
def test_storages_are_what_the_file_holds(tmp_path: Path, stored: Stored) -> None:
    content = {"a": tensor(stored, 0, (1,), (1,))}
    for write in (write_archive, write_stream):
        with pytest.raises(UserError, match=r"w\.pth: "):
            read_torch_file(write(tmp_path / "w.pth", content, {"0": A.tobytes()}))


@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_truncated_anywhere(tmp_path: Path, write: Callable[..., Path]) -> None:
    content = {"a": tensor(Stored("FloatStorage", "0", 12), 0, (12,), (1,))}
    data = write(tmp_path / "whole.pth", content, {"0": A.tobytes()}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(data), 3):
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.pth: [^\n]+$"):
            read_torch_file(cut)


def test_a_flipped_bit_in_a_storage_is_noticed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "w.pth", state_dict(), STORAGES)
    data = bytearray(path.read_bytes())
    data[data.index(A.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or damaged"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a PyTorch weight file"),
        (b"\x93NUMPY\x01\x00", "not a PyTorch weight file"),
        (pickled({"a": 1}), "not a PyTorch weight file"),
        (b"PK\x03\x04nothing", "truncated or damaged"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_torch_file(path)


def test_other_archives_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    np.savez(path.with_suffix(".npz"), a=A)
    with pytest.raises(UserError, match=r"without PyTorch's data\.pkl"):
        read_torch_file(path.with_suffix(".npz"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickled({}))
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)
    for content, message in [
        ([1], "no mapping"),
        ({"a": 1}, "'a' is no tensor"),
        ({3: state_dict()}, "'3'"),
    ]:
        with pytest.raises(UserError, match=message):
            read_torch_file(write_archive(path, content, STORAGES))
    with pytest.raises(UserError, match="no such file"):
        read_torch_file(tmp_path / "other.pth")


def test_claims_of_more_memory_than_the_file_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    memo = b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", memo)
    with pytest.raises(UserError, match="built to take memory"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled({}))
        archive.writestr("w/byteorder", b"little" * 1000, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)
