"""The layout of the FID Inception network and what is refused; tests/parity compares its numbers
with PyTorch's.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.extractors.inception import InceptionExtractor, layout, load_inception, network
from evaluation.extractors.inception_weights import (
    FEATURES_SHA256,
    INCEPTION_WEIGHTS,
    read_inception,
    read_tensors,
)
from schemas.errors import UserError
from schemas.files import sha256_file
from tests.pipelines.torch_writer import Stored, tensor, write_archive

COUNTER = "Conv2d_1a_3x3.bn.num_batches_tracked"


def write_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str] | None = None
) -> Path:
    """A small file of the given layout: every tensor is one number, seen in all places by strides
    of zero.
    """
    kinds = kinds or {}
    content = {
        name: tensor(
            Stored(f"{kinds.get(name, 'Float')}Storage", kinds.get(name, "0"), 1),
            0,
            shape,
            (0,) * len(shape),
        )
        for name, shape in shapes.items()
    }
    return write_archive(
        path, content, {"0": np.ones(1, "<f4").tobytes(), "Long": np.ones(1, "<i8").tobytes()}
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unneeded: dict[str, tuple[int, ...]] = {
        COUNTER: (),
        "AuxLogits.conv0.conv.weight": (128, 768, 1, 1),
    }
    return write_weights(
        tmp_path_factory.mktemp("weights") / "w.pth", {**layout(), **unneeded}, {COUNTER: "Long"}
    )


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionExtractor:
    return load_inception(weights, "tf1-bilinear", expected=sha256_file(weights)[:8].upper())


def test_the_published_layout() -> None:
    """566 tensors of 23,885,486 values, 94 of which are counters of batches."""
    shapes = layout()
    norms = [name for name in shapes if name.endswith("bn.weight")]
    assert len(norms) == 94
    assert len(shapes) == 566 - 94
    assert sum(math.prod(shape) for shape in shapes.values()) == 23_885_486 - 94
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert INCEPTION_WEIGHTS.sha256[:8] in INCEPTION_WEIGHTS.name
    assert INCEPTION_WEIGHTS.url.endswith(INCEPTION_WEIGHTS.name)


def test_what_it_says_of_itself(extractor: InceptionExtractor, weights: Path) -> None:
    assert (extractor.name, extractor.dim, extractor.spatial_dim) == (
        "inception-2015-12-05",
        2048,
        2023,
    )
    assert extractor.digest == read_inception(weights, layout(), None).digest
    assert extractor.class_names == ()
    assert "Mixed" not in repr(extractor)


def test_shapes(extractor: InceptionExtractor) -> None:
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    outputs = jax.eval_shape(network, extractor.params, images)
    assert [(part.shape, part.dtype) for part in outputs] == [
        ((2, size), jnp.float32) for size in (2048, 1008, 2023)
    ]


def test_batch_norms_become_scale_and_shift(extractor: InceptionExtractor) -> None:
    """Scale, shift, mean and variance are all 1 here."""
    params = extractor.params["Mixed_5b.branch1x1"]
    np.testing.assert_allclose(params["scale"], 1 / math.sqrt(1.001), rtol=1e-7)
    np.testing.assert_allclose(params["shift"], 1 - 1 / math.sqrt(1.001), rtol=1e-6)
    assert params["kernel"].shape == (1, 1, 192, 64)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2, 9, 9, 3), np.float32),
        ((9, 9, 3), np.uint8),
        ((2, 9, 9, 1), np.uint8),
        ((2, 0, 9, 3), np.uint8),
    ],
)
def test_other_types_and_shapes_are_refused(
    extractor: InceptionExtractor, shape: tuple[int, ...], kind: type[np.generic]
) -> None:
    with pytest.raises(ValueError, match="uint8"):
        extractor(np.zeros(shape, kind))  # pyright: ignore[reportArgumentType]


def test_no_images(extractor: InceptionExtractor) -> None:
    outputs = extractor(np.zeros((0, 9, 9, 3), np.uint8))
    assert [part.shape for part in outputs if part is not None] == [(0, 2048), (0, 1008), (0, 2023)]


@pytest.mark.parametrize(
    ("changed", "kinds", "message"),
    [
        ({"fc.bias": None}, {}, "no tensor 'fc.bias'"),
        ({"Mixed_6e.branch1x1.conv.bias": (192,)}, {}, "Mixed_6e.branch1x1.conv.bias"),
        ({"fc.weight": (1000, 2048)}, {}, r"fc.weight.*\(1000, 2048\)"),
        ({}, {"fc.bias": "Long"}, "fc.bias.*int64"),
    ],
    ids=["missing", "unknown", "shape", "type"],
)
def test_other_layouts_are_refused(
    tmp_path: Path, changed: dict[str, tuple[int, ...] | None], kinds: dict[str, str], message: str
) -> None:
    shapes = {name: shape for name, shape in {**layout(), **changed}.items() if shape is not None}
    with pytest.raises(UserError, match=rf"w\.pth: [^\n]*{message}[^\n]*{INCEPTION_WEIGHTS.name}"):
        read_tensors(write_weights(tmp_path / "w.pth", shapes, kinds), layout())


def test_what_cannot_be_loaded(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"SHA-256 {sha256_file(weights)}, .*expected {FEATURES_SHA256}"
    ):
        load_inception(weights, "tf1-bilinear")
    with pytest.raises(UserError, match="unknown preparation 'lanczos'; known are tf1-bilinear"):
        load_inception(weights, "lanczos", expected=None)
    with pytest.raises(UserError, match=r"no such file; download https://github\.com/mseitzer"):
        load_inception(tmp_path / "none.pth", "tf1-bilinear")
