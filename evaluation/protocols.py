"""Protocols by name: all between an image and its features, part of every number."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError, ValidationInfo, field_validator

from evaluation.extractors import EXTRACTORS, Extractor, canonical_digest, is_published
from schemas.errors import UserError, nearest
from schemas.growing import Growing

QUANTISATION = (
    "clip to [-1, 1], (x + 1) * 127.5, round half to even, uint8; once, before the extractor"
)


class Recipe(Growing):
    """A protocol's fixed part. `key` names the distance in JSON: `fid` is reserved for Inception.

    `prepare` is how images reach the network, by its name in code (empty where the network has one
    way only), `resize` the same in words. `splits` of the Inception Score: ADM's 5000 samples in
    order, torch-fidelity's ten after a shuffle, or none.
    """

    name: str
    extractor: str
    metric: str
    key: Literal["fd", "fid"]
    resize: str
    quantisation: str = QUANTISATION
    prepare: str = ""
    spatial: bool = False  # also the features of sFID
    splits: Literal["none", "consecutive", "shuffled"] = "none"


_INCEPTION = "inception-2015-12-05"
_RECIPES = (
    Recipe(
        name="adm",
        extractor=_INCEPTION,
        metric="FID",
        key="fid",
        prepare="tf1-bilinear",
        resize=(
            "to 299x299, bilinear without antialiasing, corners as TensorFlow 1 has them; (x - "
            "128) / 128"
        ),
        spatial=True,
        splits="consecutive",
    ),
    Recipe(
        name="torch-fidelity",
        extractor=_INCEPTION,
        metric="FID(torch-fidelity)",
        key="fid",
        prepare="tf1-bilinear",
        resize=(
            "to 299x299, bilinear without antialiasing, corners as TensorFlow 1 has them; (x - "
            "128) / 128"
        ),
        splits="shuffled",
    ),
    Recipe(
        name="pytorch-fid",
        extractor=_INCEPTION,
        metric="FID(pytorch-fid)",
        key="fid",
        prepare="torch-bilinear",
        resize="to 299x299, bilinear without antialiasing, half-pixel corners; 2 x / 255 - 1",
    ),
    Recipe(
        name="clean",
        extractor=_INCEPTION,
        metric="FID(clean)",
        key="fid",
        prepare="pil-bicubic",
        resize="to 299x299 by Pillow's bicubic, each channel in float32, clipped; (x - 128) / 128",
    ),
    Recipe(
        name="dinov2",
        extractor="dinov2-vitl14",
        metric="FD(DINOv2)",
        key="fd",
        resize=(
            "to 224x224 by Pillow's bicubic on 8-bit pixels; 224x224 as it is; ImageNet mean and "
            "deviation"
        ),
    ),
    Recipe(
        name="dinov2-b",
        extractor="dinov2-vitb14",
        metric="FD(DINOv2 ViT-B/14)",
        key="fd",
        resize=(
            "to 224x224 by Pillow's bicubic on 8-bit pixels; 224x224 as it is; ImageNet mean and "
            "deviation"
        ),
    ),
    Recipe(
        name="effnet-lite0",
        extractor="effnet-lite0",
        metric="FD(effnet-lite0)",
        key="fd",
        resize="to 224x224 by Pillow's bicubic on 8-bit pixels; 224x224 as it is; (x - 127) / 128",
    ),
    Recipe(
        name="embedded",
        extractor="embedded",
        metric="FD(embedded)",
        key="fd",
        resize="to 32x32 by an antialiased cubic (a = -0.5), clipped; 32x32 as it is",
    ),
)
PROTOCOLS: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


class EvaluationProtocol(Recipe):
    """A protocol as it was carried out: two statistics may be compared only when theirs are equal.

    `splits` is "none" also where the weights lack the last layer that the protocol's Inception
    Score needs; `last_layer` is its SHA-256 where `extractor_digest` does not tell it.
    """

    added = ("last_layer",)

    extractor_digest: str
    dim: int
    resolution: int
    last_layer: str = ""

    @field_validator("extractor_digest")
    @classmethod
    def _todays_digest(cls, digest: str, info: ValidationInfo) -> str:
        return canonical_digest(info.data.get("extractor", ""), digest)

    @property
    def weights(self) -> str:
        """The digests of the weights for a reader, shortened."""
        last_layer = f", last layer {self.last_layer[:12]}" if self.last_layer else ""
        return f"{self.extractor_digest[:12]}{last_layer}"

    def for_distance(self) -> "EvaluationProtocol":
        """Without the Inception Score's own fields: equal where distances compare."""
        return self.model_copy(update={"splits": "none", "last_layer": ""})

    @property
    def lacks_last_layer(self) -> bool:
        """Whether the protocol has an Inception Score, and the weights no last layer for it."""
        recipe = PROTOCOLS.get(self.name)
        return recipe is not None and recipe.splits != "none" and self.splits == "none"

    @classmethod
    def resolve(cls, recipe: Recipe, extractor: Extractor, resolution: int) -> "EvaluationProtocol":
        """Fill in the extractor's and the images' part; unpublished weights give no FID."""
        values = recipe.model_dump()
        if not is_published(recipe.extractor, extractor.digest):
            values |= {
                "metric": f"FD({recipe.extractor}, weights {extractor.digest[:8]})",
                "key": "fd",
            }
        if extractor.last_layer is None:
            values |= {"splits": "none"}
        return cls(
            **values,
            extractor_digest=extractor.digest,
            dim=extractor.dim,
            resolution=resolution,
            last_layer=extractor.last_layer or "",
        )

    @classmethod
    def unsaid(cls, recipe: Recipe) -> "EvaluationProtocol":
        """What statistics of other evaluators are taken for. Their network is not needed, and its
        weights not known; so their distance is not called FID.
        """
        values = recipe.model_dump()
        values |= {"metric": f"FD({recipe.extractor}, weights not said)", "key": "fd"}
        return cls(
            **values, extractor_digest="", dim=EXTRACTORS[recipe.extractor].dim, resolution=0
        )


def find_protocol(name: str) -> Recipe:
    """Look up a protocol. Raises `UserError` with the nearest known name."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def read_protocol(content: Mapping[str, Any]) -> EvaluationProtocol | None:
    """A statistics file's protocol; None in files of other evaluators."""
    known = {name: content[name] for name in EvaluationProtocol.model_fields if name in content}
    try:
        return EvaluationProtocol.model_validate(known)
    except ValidationError:
        return None


def check_comparable(
    protocol: EvaluationProtocol, dim: int, other: EvaluationProtocol | None, where: str
) -> None:
    """Refuse a reference that was measured in another way.

    Args:
        protocol: of the samples.
        dim: feature dimension of the reference.
        other: protocol of the reference, None when its file does not say.
        where: how to name the reference in a message.

    Raises:
        UserError: the extractor, its weights, the dimension, the resolution or the resize rule
            differs.
    """
    differing = [
        name
        for name in _ORDER
        if other is not None and getattr(protocol, name) != getattr(other, name)
    ]
    if differing:
        name = differing[0]
        mine, theirs = _short(getattr(protocol, name)), _short(getattr(other, name))
        raise UserError(
            f"{where}: measured with {name} {theirs}, the samples with {mine}; "
            "make a reference for them with `flowtrain stats`"
        )
    if dim != protocol.dim:
        raise UserError(
            f"{where}: features of dimension {dim}, but {protocol.extractor} gives {protocol.dim}; "
            "give statistics of the same extractor (`flowtrain stats`)"
        )


_ORDER = ("extractor", "extractor_digest", "resolution", "prepare", "resize", "quantisation", "dim")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
