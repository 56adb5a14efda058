"""Compares tensors of a file with a network's names and shapes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schemas.errors import UserError


def check_layout(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
    network: str,
) -> None:
    """Refuse tensors whose names or shapes are not those of a network.

    Args:
        tensors: by name, from the file.
        expected: every name of the network with its shape.
        where: the file, for messages.
        network: what the file should hold, for messages.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or not of floating point.
    """
    wrong = [f"no tensor {name!r}" for name in expected if name not in tensors]
    wrong += [f"an unknown tensor {name!r}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        found = tensors[name]
        if found.shape != expected[name]:
            wrong.append(f"{name!r} of shape {found.shape} instead of {expected[name]}")
        elif not np.issubdtype(found.dtype, np.floating):
            wrong.append(f"{name!r} of type {found.dtype} instead of float32")
    if wrong:
        more = f" ({len(wrong)} differences)" if len(wrong) > 1 else ""
        raise UserError(f"{where}: {wrong[0]}{more}; give the weights of {network}")
