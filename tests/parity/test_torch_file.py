"""Weight files as PyTorch itself writes them, in both of its formats."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.encoders.torch_file import read_torch_file
from schemas.errors import UserError

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
pytestmark = pytest.mark.parity


def tensors() -> dict[str, Any]:
    """Every type, views that share a storage, expanded, empty and zero-dimensional ones."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    kinds = [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
    return OrderedDict(
        **{kind: (torch.randn(3, 2) * 3).abs().to(getattr(torch, kind)) for kind in kinds},
        base=base,
        transposed=base.t()[1:3],
        row=base[2],
        every_other=base[::2, 1::2],
        expanded=base[:, :1].expand(4, 5),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )


def module() -> dict[str, Any]:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
@pytest.mark.parametrize("make", [tensors, module])
def test_equal_to_torch(tmp_path: Path, archive: bool, make: Any) -> None:
    expected = make()
    path = tmp_path / "weights.pth"
    torch.save(expected, path, _use_new_zipfile_serialization=archive)
    found = read_torch_file(path)
    assert list(found) == list(expected)
    for name, value in expected.items():
        reference = (
            value.detach()
            .to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
            .numpy()
        )
        assert found[name].dtype == reference.dtype, name
        np.testing.assert_array_equal(found[name], reference, err_msg=name)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "stream"])
def test_whole_modules_and_optimizers_are_refused(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(path)
    torch.save({"model": module(), "step": 3}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match="'model' is no tensor"):
        read_torch_file(path)


def test_a_compiled_program_gives_its_state_dict(tmp_path: Path) -> None:
    """Modules within modules, whose attributes are also numbers, lists and None."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=(1, 0)),
        torch.nn.BatchNorm2d(4),
        torch.nn.Sequential(
            torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Linear(2, 2, bias=False)
        ),
    )
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(net.eval()), path)
    found, expected = read_torch_file(path), net.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
