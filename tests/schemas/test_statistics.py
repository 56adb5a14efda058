import numpy as np
import pytest

from schemas.errors import UserError
from schemas.statistics import FeatureStatistics, Moments, read_statistics, write_statistics


def test_sums_equal_numpy_in_any_grouping():
    features = np.random.default_rng(0).normal(3.0, 2.0, (101, 7))
    whole = Moments.of(features)
    parts = Moments.zero(7)
    for piece in np.array_split(features, 9)[::-1]:
        parts += Moments.of(piece)
    for moments in (whole, parts):
        assert moments.n == 101
        np.testing.assert_allclose(moments.mean(), features.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(
            moments.cov(), np.cov(features, rowvar=False), rtol=1e-10, atol=1e-12
        )


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="must be"):
        Moments.of(np.zeros(3))
    with pytest.raises(ValueError, match="dimensions differ"):
        _ = Moments.zero(2) + Moments.zero(3)
    with pytest.raises(ValueError, match="at least 2"):
        Moments.of(np.zeros((1, 2))).cov()


def test_file_round_trip_and_foreign_files(tmp_path):
    moments = Moments.of(np.random.default_rng(1).normal(size=(20, 3)))
    path = tmp_path / "a.npz"
    write_statistics(path, FeatureStatistics.from_moments(moments, {"extractor": "x", "n": 20}))
    read = read_statistics(path)
    np.testing.assert_array_equal(read.sigma, moments.cov())
    assert read.protocol == {"extractor": "x", "n": 20}
    assert read.moments is not None
    np.testing.assert_array_equal(read.moments.outer, moments.outer)

    foreign = tmp_path / "pytorch-fid.npz"
    np.savez(foreign, mu=read.mu, sigma=read.sigma)
    assert read_statistics(foreign).moments is None
    assert read_statistics(foreign).dim == 3


def test_files_that_are_not_what_they_say(tmp_path):
    text, pickled, other, ragged = (
        tmp_path / f"{name}.npz" for name in ("text", "pickled", "other", "ragged")
    )
    text.write_text("no zip")
    np.savez(pickled, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez(other, arr_0=np.zeros(3))
    np.savez(ragged, mu=np.zeros(3), sigma=np.eye(4))
    nan, skew, list_ = (tmp_path / f"{name}.npz" for name in ("nan", "skew", "list"))
    lone = tmp_path / "lone.npz"
    with open(lone, "wb") as file:
        np.save(file, np.zeros(3))
    np.savez(nan, mu=np.array([np.nan]), sigma=np.eye(1))
    np.savez(skew, mu=np.zeros(2), sigma=np.array([[1.0, 0.5], [0.1, 1.0]]))
    np.savez(list_, mu=np.zeros(1), sigma=np.eye(1), protocol=np.array("[1]"))
    for path, message in [
        (tmp_path / "none.npz", "not a readable"),
        (text, "not a readable"),
        (pickled, "not a readable"),
        (other, "not the mu and sigma"),
        (ragged, "do not belong together"),
        (lone, "not a readable"),
        (nan, "NaN"),
        (skew, "no covariance"),
        (list_, "not a JSON object"),
    ]:
        with pytest.raises(UserError, match=message):
            read_statistics(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": np.int64(-5)}, "n is -5"),
        ({"n": np.int64(0)}, "n is 0"),
        ({"n": np.array(2.5)}, "n is 2.5"),
        ({"n": np.array([3, 4])}, r"n is \(2,\)"),
        ({"mu": np.zeros(3, complex)}, "mu holds complex128"),
        ({"sigma": np.full((3, 3), "x")}, "sigma holds <U1"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "do not belong together"),
        ({"total": np.zeros(4)}, r"total is \(4,\)"),
        ({"outer": np.full((3, 3), np.nan)}, "outer holds NaN"),
        ({"protocol": np.array("[" * 100_000)}, "in each other"),
        ({"protocol": np.array("[]")}, "not a JSON object"),
        ({"protocol": np.array('{"images": 3}')}, "protocol.images"),
        ({"score_n": np.zeros(2, int), "score_plogp": np.zeros(3), "score_p": np.zeros((2, 5))},
         "score_plogp is"),
    ],
)  # fmt: skip
def test_values_that_no_statistics_have_are_one_line(tmp_path, change, told):
    moments = Moments.of(np.random.default_rng(1).normal(size=(20, 3)))
    path = tmp_path / "a.npz"
    write_statistics(path, FeatureStatistics.from_moments(moments, {}))
    with np.load(path) as file:
        np.savez(path, **{**file, **change})
    with pytest.raises(UserError, match=told) as caught:
        read_statistics(path)
    assert "\n" not in str(caught.value)
