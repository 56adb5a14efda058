"""Protocols: what makes two numbers comparable."""

import itertools
from dataclasses import dataclass

import pytest

from evaluation.extractors import (
    EXTRACTORS,
    dinov2_weights,
    effnet_lite0,
    inception,
    is_published,
    load_extractor,
)
from evaluation.extractors.inception_weights import FEATURES_SHA256, INCEPTION_WEIGHTS
from evaluation.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    check_comparable,
    find_protocol,
    read_protocol,
)
from evaluation.score.groups import GROUPS, choose
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
    sizes = {
        f"dinov2-{size}14": width
        for (width, _), size in dinov2_weights.SIZES.items()
        if size != "vits"
    }
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
    published = EvaluationProtocol.resolve(adm, _Other(digest=FEATURES_SHA256), 8)
    assert (published.key, published.metric) == ("fid", "FID")


def test_statistics_with_the_published_files_digest_stay_what_they_were() -> None:
    """Before the tensors were hashed, `extractor_digest` was the SHA-256 of the `.pth`."""
    published = EvaluationProtocol.resolve(PROTOCOLS["adm"], _Other(digest=FEATURES_SHA256), 8)
    before = published.model_dump(exclude={"last_layer"}) | {
        "extractor_digest": INCEPTION_WEIGHTS.sha256
    }
    read = read_protocol(before)
    assert read == published
    check_comparable(published, 5, read, "ref.npz")
    assert is_published("inception-2015-12-05", INCEPTION_WEIGHTS.sha256)
    assert not is_published("inception-2015-12-05", INCEPTION_WEIGHTS.sha256[:-1] + "0")
    other = read_protocol(before | {"extractor_digest": "1" * 64})
    with pytest.raises(UserError, match="measured with extractor_digest 1111"):
        check_comparable(published, 5, other, "ref.npz")


def test_without_the_last_layer_there_is_no_inception_score() -> None:
    adm, told = PROTOCOLS["adm"], list[str]()
    lacking = EvaluationProtocol.resolve(adm, _Other(digest=FEATURES_SHA256, last_layer=None), 8)
    whole = EvaluationProtocol.resolve(adm, _Other(digest=FEATURES_SHA256), 8)
    other = EvaluationProtocol.resolve(adm, _Other(digest=FEATURES_SHA256, last_layer="1" * 64), 8)
    assert (lacking.metric, lacking.splits, lacking.lacks_last_layer) == ("FID", "none", True)
    assert (whole.splits, whole.lacks_last_layer, whole.last_layer) == ("consecutive", False, "")
    assert (other.splits, other.last_layer) == ("consecutive", "1" * 64)
    for one, another in itertools.permutations((whole, lacking, other), 2):
        assert one != another
        check_comparable(one, whole.dim, another, "ref.npz")
    with pytest.raises(
        UserError, match=r"^--metrics is: the weights lack[^\n]*last layer[^\n]*--extractor-sha256"
    ):
        choose(["is"], lacking, 5000)
    assert choose(["all"], lacking, 5000, told.append) == tuple(
        name for name in GROUPS if name != "is"
    )
    assert told[0].startswith("left out: is (the weights lack the network's last layer")
    assert choose([], lacking, 5000) == ("sfid",)
    assert choose([], whole, 5000) == ("sfid", "is")


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
    [
        ("extractor", "other"),
        ("extractor_digest", "1"),
        ("resolution", 16),
        ("resize", "x"),
        ("quantisation", "x"),
    ],
)
def test_any_difference_is_named(name: str, value: object) -> None:
    check_comparable(PROTOCOL, 5, PROTOCOL, "ref.npz")
    check_comparable(PROTOCOL, 5, None, "ref.npz")
    with pytest.raises(UserError, match=rf"^ref\.npz: measured with {name} "):
        check_comparable(PROTOCOL, 5, PROTOCOL.model_copy(update={name: value}), "ref.npz")


def test_the_dimension_is_checked_where_nothing_else_is_known() -> None:
    with pytest.raises(UserError, match="dimension 6, but tiny gives 5"):
        check_comparable(PROTOCOL, 6, None, "ref.npz")
