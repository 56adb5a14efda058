"""Which tensors a dataset holds, and their shapes and dtypes. Light: commands import it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LayoutSpec:
    """One kind of record.

    Attributes:
        tensors: names and dtypes, in the order in which an encoder gives them.
        noun: a plural noun for the stored arrays.
        about: a sentence or two for people who find a dataset.
        measured: what the channel statistics in a manifest are of.
    """

    tensors: Mapping[str, Literal["float16", "float32", "uint8"]]
    noun: str
    about: str
    measured: str


LAYOUTS: Mapping[Layout, LayoutSpec] = {
    Layout.MOMENTS: LayoutSpec(
        tensors={"mean": "float16", "logvar": "float16"},
        noun="latents",
        about=(
            "Images encoded by a variational autoencoder: the raw posterior moments `mean` and "
            "`logvar`, neither scaled nor sampled, so that every epoch can draw fresh posterior "
            "samples."
        ),
        measured="of posterior samples, over all records and positions",
    ),
    Layout.LATENT: LayoutSpec(
        tensors={"latent": "float16"},
        noun="latents",
        about=(
            "Images encoded by an autoencoder without a posterior: one raw latent an image, "
            "neither scaled nor normalised."
        ),
        measured="over all records and positions",
    ),
    Layout.IMAGE: LayoutSpec(
        tensors={"image": "uint8"},
        noun="pixels",
        about="Images, cropped to squares, as 8-bit RGB pixels.",
        measured="of pixels in [-1, 1], over all records and positions",
    ),
}


def layout_tensors(layout: Layout, shape: tuple[int, int, int]) -> dict[str, TensorSpec]:
    """The tensors of a layout, for `shape` = (height, width, channels) of the stored array."""
    tensors = LAYOUTS[layout].tensors
    return {name: TensorSpec(shape=shape, dtype=dtype) for name, dtype in tensors.items()}
