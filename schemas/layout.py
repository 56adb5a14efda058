"""Which tensors a dataset holds, and their shapes and dtypes. Light: commands import it."""

import math
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

KEY = "key"
LABEL = "label"
_ITEM_BYTES = {"float16": 2, "float32": 4, "uint8": 1}


class Layout(StrEnum):
    """Which tensors a dataset holds."""

    MOMENTS = "moments"  # mean, logvar: raw posterior moments of a VAE
    # latent: of an encoder without a posterior, raw; or a generated sample, in the model's scale
    LATENT = "latent"
    IMAGE = "image"  # image: uint8 pixels


class TensorSpec(BaseModel):
    """Shape and dtype of one stored tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "uint8"]

    @property
    def nbytes(self) -> int:
        """Bytes of one tensor."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


_TENSORS: dict[Layout, tuple[tuple[str, Literal["float16", "float32", "uint8"]], ...]] = {
    Layout.MOMENTS: (("mean", "float16"), ("logvar", "float16")),
    Layout.LATENT: (("latent", "float16"),),
    Layout.IMAGE: (("image", "uint8"),),
}


def layout_tensors(layout: Layout, shape: tuple[int, int, int]) -> dict[str, TensorSpec]:
    """The tensors of a layout, for `shape` = (height, width, channels) of the stored array."""
    return {name: TensorSpec(shape=shape, dtype=dtype) for name, dtype in _TENSORS[layout]}
