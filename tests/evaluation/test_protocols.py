"""Protocols: what makes two numbers comparable."""

from dataclasses import dataclass

import pytest

from evaluation.extractors import EXTRACTORS, dinov2, effnet_lite0, inception, load_extractor
from evaluation.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    check_comparable,
    find_protocol,
    read_protocol,
)
from schemas.errors import UserError
from tests.evaluation.tiny import RECIPE, TinyExtractor

PROTOCOL = EvaluationProtocol.resolve(RECIPE, TinyExtractor(), 8)


def test_every_protocol_names_an_extractor_and_only_inception_says_fid() -> None:
    for name, recipe in PROTOCOLS.items():
        assert recipe.name == name
        assert recipe.extractor in EXTRACTORS
        assert (recipe.key == "fid") == recipe.extractor.startswith("inception")
        assert recipe.metric.startswith("FID" if recipe.key == "fid" else "FD(")
    assert len({recipe.metric for recipe in PROTOCOLS.values()}) == len(PROTOCOLS)


def test_the_table_of_extractors_knows_their_features() -> None:
    dims = {name: entry.dim for name, entry in EXTRACTORS.items() if name != "tiny"}
    sizes = {f"dinov2-{size}14": width for (width, _), size in dinov2.SIZES.items() if size != "vits"}
    assert dims == {
        "inception-2015-12-05": inception.DIM,
        **sizes,
        "effnet-lite0": effnet_lite0.FEATURES,
        "embedded": load_extractor("embedded").dim,
    }


@dataclass(frozen=True)
class _Other(TinyExtractor):
    digest: str = "12345678" + "0" * 56


def test_only_the_published_weights_give_an_fid() -> None:
    adm = PROTOCOLS["adm"]
    found = EvaluationProtocol.resolve(adm, _Other(), 8)
    assert (found.key, found.metric) == ("fd", "FD(inception-2015-12-05, weights 12345678)")
    published = EvaluationProtocol.resolve(adm, _Other(digest="6726825d" + "0" * 56), 8)
    assert (published.key, published.metric) == ("fid", "FID")


def test_wrong_names_get_the_nearest_right_one() -> None:
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        find_protocol("embeded")
    with pytest.raises(UserError, match="known are inception-2015-12-05, "):
        load_extractor("vgg")


def test_a_protocol_comes_back_from_a_statistics_file() -> None:
    assert read_protocol({**PROTOCOL.model_dump(), "images": {"n": 3}}) == PROTOCOL
    assert read_protocol({}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("extractor", "other"), ("extractor_digest", "1"), ("resolution", 16), ("resize", "x"), ("quantisation", "x")],
)
def test_any_difference_is_named(name: str, value: object) -> None:
    check_comparable(PROTOCOL, 5, PROTOCOL, "ref.npz")
    check_comparable(PROTOCOL, 5, None, "ref.npz")
    with pytest.raises(UserError, match=rf"^ref\.npz: measured with {name} "):
        check_comparable(PROTOCOL, 5, PROTOCOL.model_copy(update={name: value}), "ref.npz")


def test_the_dimension_is_checked_where_nothing_else_is_known() -> None:
    with pytest.raises(UserError, match="dimension 6, but tiny gives 5"):
        check_comparable(PROTOCOL, 6, None, "ref.npz")
