"""Feature networks by name: uint8 images in, features and class logits out.

inception, inception_weights: FID's network; dinov2, dinov2_weights: DINOv2.
effnet_lite0: EfficientNet-Lite0; embedded: a small network that needs no download.
resize, pillow_resize: how evaluators bring images to a network's size.
batches: images in batches of one size; outputs: features and logits; layout: whether
a file holds the tensors of a network.
downloads: weight files, verified; cache: networks loaded once a process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.extractors.inception_weights import (
    FEATURES_SHA256,
    INCEPTION_WEIGHTS,
    find_inception,
)
from evaluation.extractors.outputs import Outputs
from schemas.errors import UserError, nearest


class Extractor(Protocol):
    """A feature network with its weights loaded.

    `digest` is the SHA-256 of the weights, `class_names` the meaning of the logits, in order; empty
    where it is not known. `spatial_dim` is 0 where there are no features for sFID. `last_layer`
    says what the Inception Score's logits come from: "" a layer that `digest` tells, the SHA-256 of
    another one, None where there is none to rely on.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def spatial_dim(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def last_layer(self) -> str | None: ...

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """uint8 (n, H, W, 3), n >= 1 -> features (n, dim), logits (n, classes), perhaps more."""
        ...


@dataclass(frozen=True)
class Weights:
    """The weights that a user names in place of an extractor's published ones.

    Attributes:
        path: a file or a directory; None for the published weights, from the installed package, the
            cache or the public release.
        sha256: of the file, or, for Inception, of the tensors (`features_digest`); None for the
            published one.
    """

    path: str | None = None
    sha256: str | None = None


PUBLISHED = Weights()


def _embedded(prepare: str, weights: Weights) -> Extractor:
    from evaluation.extractors.embedded import load_embedded

    if weights != PUBLISHED:
        raise UserError(
            "--extractor-weights, --extractor-sha256: the embedded extractor has its own; leave "
            "them out"
        )
    return load_embedded()


def _inception(prepare: str, weights: Weights) -> Extractor:
    from evaluation.extractors.inception import load_inception

    path = find_inception(Path(weights.path) if weights.path else None, weights.sha256)
    return load_inception(path, prepare, weights.sha256 or FEATURES_SHA256)


def _effnet_lite0(prepare: str, weights: Weights) -> Extractor:
    from evaluation.extractors.effnet_lite0 import load_effnet_lite0

    return _verified(load_effnet_lite0(Path(weights.path) if weights.path else None), weights)


def _dinov2(repository: str, name: str) -> Callable[[str, Weights], Extractor]:
    def load(prepare: str, weights: Weights) -> Extractor:
        from evaluation.extractors.dinov2 import load_dinov2

        extractor = load_dinov2(weights.path or repository)
        if extractor.name != name:
            raise UserError(
                f"{weights.path}: holds {extractor.name}, not {name}; give the weights of "
                f"{repository}"
            )
        return _verified(extractor, weights)

    return load


def _verified(extractor: Extractor, weights: Weights) -> Extractor:
    if weights.sha256 is not None and not extractor.digest.startswith(weights.sha256.lower()):
        raise UserError(
            f"{weights.path or extractor.name}: SHA-256 {extractor.digest}, not {weights.sha256}; "
            "give the right file"
        )
    return extractor


class Entry(NamedTuple):
    """An extractor that a protocol may name.

    Attributes:
        load: loads it, given how images are prepared and where the weights are.
        dim: number of its features.
        published: the first digits of the weights' published SHA-256. "" where no digest is
            published, or the weights come with this package: any digest is taken.
        aliases: further digests of the same weights.
    """

    load: Callable[[str, Weights], Extractor]
    dim: int
    published: str = ""
    aliases: tuple[str, ...] = ()


EXTRACTORS: Mapping[str, Entry] = {
    "inception-2015-12-05": Entry(_inception, 2048, FEATURES_SHA256, (INCEPTION_WEIGHTS.sha256,)),
    "dinov2-vitl14": Entry(_dinov2("facebook/dinov2-large", "dinov2-vitl14"), 1024),
    "dinov2-vitb14": Entry(_dinov2("facebook/dinov2-base", "dinov2-vitb14"), 768),
    "effnet-lite0": Entry(_effnet_lite0, 1280, "57934424"),
    "embedded": Entry(_embedded, 64),
}


def load_extractor(name: str, prepare: str = "", weights: Weights | None = None) -> Extractor:
    """Load a feature network, which takes seconds; `evaluation.extractors.cache` keeps it.

    Args:
        name: of `EXTRACTORS`.
        prepare: how images reach it, where it has several ways.
        weights: default: as published.

    Raises:
        UserError: no such name, or its weights cannot be had.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor {name!r}{nearest(name, EXTRACTORS)}")
    return EXTRACTORS[name].load(prepare, weights or PUBLISHED)


def canonical_digest(name: str, digest: str) -> str:
    """The digest that weights go by today.

    Statistics of Inception that were written before its tensors were hashed hold the SHA-256 of the
    published file.
    """
    entry = EXTRACTORS.get(name)
    return entry.published if entry is not None and digest in entry.aliases else digest


def is_published(name: str, digest: str) -> bool:
    """Whether weights of this digest are those that the name stands for."""
    return name not in EXTRACTORS or canonical_digest(name, digest).startswith(
        EXTRACTORS[name].published
    )
