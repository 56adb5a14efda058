"""Results: the line holds everything, a torn line costs only itself, equal settings are found."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from evaluation.results import (
    RESULTS_NAME,
    Reference,
    Result,
    append_result,
    find_result,
    read_results,
    reference_of,
)
from schemas.errors import UserError
from schemas.statistics import FeatureStatistics, Moments
from tests.evaluation.results import PROTOCOL, result
from tests.evaluation.tiny import TinyExtractor


def test_a_line_is_flat_and_comes_back_equal(tmp_path: Path) -> None:
    first = result()
    append_result(tmp_path, first)
    append_result(tmp_path, result(steps=5, accuracy=None))
    assert read_results(tmp_path) == [first, result(steps=5, accuracy=None)]
    line = json.loads((tmp_path / RESULTS_NAME).read_text().splitlines()[0])
    assert (line["fd"], line["steps"], line["cfg"], line["accuracy"]) == (1.5, 20, 1.0, 0.5)
    assert "fid" not in line, "only Inception gives an FID"
    assert line["protocol"]["extractor_digest"] == TinyExtractor().digest
    assert line["reference"]["digest"] == "d" * 64


def test_any_flipped_bit_is_told(tmp_path: Path) -> None:
    # one flip makes M a carriage return, which ends lines elsewhere
    append_result(tmp_path, result().model_copy(update={"images": {"M": "M"}}))
    append_result(tmp_path, result(steps=5))
    path = tmp_path / RESULTS_NAME
    whole = path.read_bytes()
    for place in range(whole.index(b"\n") + 1):
        for bit in (0, 3, 6):
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
            )
            with pytest.raises(UserError, match="line 1 is damaged"):
                read_results(tmp_path)


def test_lines_of_earlier_commits_have_no_digest_and_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_NAME
    earlier = json.dumps(result().to_json())
    path.write_text(f"{earlier}\n")
    append_result(tmp_path, result(steps=5))
    assert path.read_text().splitlines()[0] == earlier
    assert read_results(tmp_path) == [result(), result(steps=5)]
    path.write_text(f'{earlier[:-1]}, "more": 1}}\n')
    with pytest.raises(UserError, match="line 1"):
        read_results(tmp_path)


def test_what_another_command_has_measured_meanwhile_is_not_written_twice(tmp_path: Path) -> None:
    append_result(tmp_path, result())
    append_result(tmp_path, result().model_copy(update={"seconds": {"generate": 99.0}}))
    assert len(read_results(tmp_path)) == 1
    richer = result().model_copy(update={"metrics": {"sfid": 2.0}})
    for _ in range(2):
        append_result(tmp_path, richer)
        append_result(tmp_path, result())
    assert read_results(tmp_path) == [result(), richer]


def test_two_writers_lose_no_line_of_each_other(tmp_path: Path) -> None:
    # Threads stand for commands: the lock is of the open file, so it keeps them apart just as well.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda steps: append_result(tmp_path, result(steps=steps)), range(1, 41)))
    assert sorted(each.sampling.steps for each in read_results(tmp_path) if each.sampling) == list(
        range(1, 41)
    )


def test_an_inception_protocol_says_fid() -> None:
    inception = PROTOCOL.model_copy(update={"key": "fid", "metric": "FID"})
    content = result().model_copy(update={"protocol": inception}).to_json()
    assert content["fid"] == 1.5
    assert "fd" not in content
    assert Result.from_json(content).distance == 1.5


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path: Path) -> None:
    append_result(tmp_path, result())
    path = tmp_path / RESULTS_NAME
    path.write_text(path.read_text() + '{"fd": 3.1, "accur')
    assert read_results(tmp_path) == [result()]
    append_result(tmp_path, result(steps=1))
    assert read_results(tmp_path) == [result(), result(steps=1)]


def test_damage_elsewhere_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / RESULTS_NAME).write_text('{"fid": 3}\n')
    with pytest.raises(UserError, match="line 1 is damaged, or no result"):
        read_results(tmp_path)


def test_identity_is_setting_protocol_and_reference() -> None:
    known = [result(), result(steps=5)]
    assert find_result(known, result(distance=9.0, accuracy=0.1).identity) == known[0]
    assert find_result(known, result(cfg=4.0).identity) is None
    other = result().model_copy(update={"reference": Reference(digest="e" * 64, n=100, images={})})
    assert find_result(known, other.identity) is None
    stronger = PROTOCOL.model_copy(update={"extractor_digest": "1" * 64})
    assert find_result(known, result().model_copy(update={"protocol": stronger}).identity) is None


def test_the_reference_digest_is_of_the_numbers() -> None:
    features = np.random.default_rng(0).normal(size=(20, 3))
    one = FeatureStatistics.from_moments(Moments.of(features), {"images": {"kind": "source"}})
    other_file = FeatureStatistics(one.mu.copy(), one.sigma.copy(), None, {})
    assert reference_of(one).digest == reference_of(other_file).digest
    assert reference_of(one).n == 20
    assert reference_of(other_file).n is None
    moved = FeatureStatistics(one.mu + 1e-9, one.sigma, None, {})
    assert reference_of(moved).digest != reference_of(one).digest
