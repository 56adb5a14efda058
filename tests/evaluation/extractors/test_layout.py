"""Tensors of a file against a network's: every difference is counted, the first one is named."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.extractors.layout import check_layout
from schemas.errors import UserError

EXPECTED = {"a.weight": (3, 2), "a.bias": (3,), "scale": ()}
FILE = Path("net.safetensors")


def tensors(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    whole = {name: np.zeros(shape, np.float16) for name, shape in EXPECTED.items()}
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in {**whole, **changed}.items() if value is not None}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_same_names_and_shapes_in_any_precision(dtype: type) -> None:
    check_layout(tensors(a__bias=np.ones(3, dtype)), EXPECTED, FILE, "a network")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale": None}, "no tensor 'scale'"),
        ({"b": np.zeros(1)}, "an unknown tensor 'b'"),
        ({"a__weight": np.zeros((2, 3))}, "'a.weight' of shape (2, 3) instead of (3, 2)"),
        ({"scale": np.zeros(1)}, "'scale' of shape (1,) instead of ()"),
        ({"a__bias": np.zeros(3, np.int32)}, "'a.bias' of type int32 instead of float32"),
        ({"scale": None, "b": np.zeros(1)}, "no tensor 'scale' (2 differences)"),
    ],
)
def test_a_difference_is_one_line(changes: dict[str, np.ndarray | None], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(tensors(**changes), EXPECTED, FILE, "a network")
    assert str(caught.value) == f"{FILE}: {told}; give the weights of a network"
