"""Protocols by name: everything between an image and a feature row. A number without its protocol says nothing."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.extractors import Extractor, nearest
from schemas.errors import UserError

QUANTISATION = "clip to [-1, 1], (x + 1) * 127.5, round half to even, uint8; once, before the extractor"


class Recipe(BaseModel):
    """A protocol's fixed part. `key` names the distance in JSON: `fid` is reserved for Inception."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    extractor: str
    metric: str
    key: Literal["fd", "fid"]
    resize: str
    quantisation: str = QUANTISATION


PROTOCOLS: Mapping[str, Recipe] = {
    "embedded": Recipe(
        name="embedded",
        extractor="embedded",
        metric="FD(embedded)",
        key="fd",
        resize="to 32x32 by an antialiased cubic (a = -0.5), clipped; 32x32 as it is",
    ),
}


class EvaluationProtocol(Recipe):
    """A protocol as it was carried out: two statistics may be compared only when theirs are equal."""

    extractor_digest: str
    dim: int
    resolution: int

    @classmethod
    def resolve(cls, recipe: Recipe, extractor: Extractor, resolution: int) -> "EvaluationProtocol":
        """Fill in what the loaded extractor and the images say."""
        return cls(**recipe.model_dump(), extractor_digest=extractor.digest, dim=extractor.dim, resolution=resolution)


def find_protocol(name: str) -> Recipe:
    """Look up a protocol. Raises `UserError` with the nearest known name."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def read_protocol(content: Mapping[str, Any]) -> EvaluationProtocol | None:
    """The protocol inside a statistics file; None for files of other evaluators, which say nothing."""
    known = {name: content[name] for name in EvaluationProtocol.model_fields if name in content}
    try:
        return EvaluationProtocol.model_validate(known)
    except ValidationError:
        return None


def check_comparable(protocol: EvaluationProtocol, dim: int, other: EvaluationProtocol | None, where: str) -> None:
    """Refuse a reference that was measured in another way.

    Args:
        protocol: of the samples.
        dim: feature dimension of the reference.
        other: protocol of the reference, None when its file does not say.
        where: how to name the reference in a message.

    Raises:
        UserError: the extractor, its weights, the dimension, the resolution or the resize rule differs.
    """
    differing = [name for name in _ORDER if other is not None and getattr(protocol, name) != getattr(other, name)]
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


_ORDER = ("extractor", "extractor_digest", "resolution", "resize", "quantisation", "dim")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
