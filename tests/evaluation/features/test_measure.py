"""Statistics as files: what they may replace, when they are read back, and how images are named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.features import pipeline
from evaluation.features.imagesets import batch_images
from evaluation.features.measure import (
    DEFAULTS,
    check_out,
    describe,
    kept_statistics,
    measure_images,
    named_images,
    protocol_of,
    summary,
)
from evaluation.features.rows import rows_path
from evaluation.protocols import EvaluationProtocol
from schemas.errors import UserError
from tests.evaluation.conftest import World
from tests.evaluation.tiny import RECIPE, SIDE, TinyExtractor

pytestmark = pytest.mark.usefixtures("tiny_protocol")


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "batch.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), np.uint8))
    return path


@pytest.fixture
def protocol() -> EvaluationProtocol:
    return protocol_of(RECIPE, SIDE)


def test_only_statistics_are_replaced_by_statistics(
    batch: Path, protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    check_out(out)
    measure_images(batch_images(batch), protocol, out)
    check_out(out)
    whole = out.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):  # as a full disk may leave it
        out.write_bytes(content)
        check_out(out)
    out.write_text("precious")
    for path in (out, batch, tmp_path):
        with pytest.raises(UserError, match="is there and is not feature statistics"):
            check_out(path)


def test_what_was_measured_is_read_back_while_it_is_the_same(
    batch: Path, protocol: EvaluationProtocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    run = pipeline.run

    def counted(config: pipeline.Config, *others: object) -> object:
        runs.append(config.images.size)
        return run(config, *others)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(pipeline, "run", counted)
    out = tmp_path / "out.npz"
    first = kept_statistics(batch_images(batch), protocol, out)
    again = kept_statistics(batch_images(batch), protocol, out)
    assert runs == [12]
    np.testing.assert_array_equal(again.statistics.mu, first.statistics.mu)
    kept_statistics(batch_images(batch, 9), protocol, out)
    assert runs == [12, 9], "fewer images"
    options = replace(DEFAULTS, keep_features=True)
    kept_statistics(batch_images(batch, 9), protocol, out, options)
    assert runs == [12, 9, 9], "their rows were not kept"
    rows_path(out).write_bytes(b"damaged")
    found = kept_statistics(batch_images(batch, 9), protocol, out, options)
    assert runs == [12, 9, 9, 9]
    assert found.rows().shape == (9, TinyExtractor.dim)
    other = protocol.model_copy(update={"metric": "FD(other)"})
    kept_statistics(batch_images(batch, 9), other, out, options)
    assert runs == [12, 9, 9, 9, 9], "another protocol"


def test_images_are_named_by_what_lies_there(world: World, batch: Path, tmp_path: Path) -> None:
    assert named_images(str(batch), None, None, "adm", 5).size == 5
    dataset = str(world.dataset)
    assert named_images(dataset, None, None, "adm", None).size == 30
    assert named_images(dataset, None, SIDE, "adm", 7).size == 7
    with pytest.raises(UserError, match=f"a dataset of {SIDE} pixels, not 16"):
        named_images(dataset, None, 16, "adm", None)
    with pytest.raises(UserError, match="say at which --resolution to measure it"):
        named_images(str(tmp_path), None, None, "adm", None)
    digits = named_images("embedded:digits", None, 32, "adm", 3)
    assert (digits.size, digits.resolution) == (3, 32)


def test_what_is_told_of_statistics(
    batch: Path, protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    told = summary(measure_images(batch_images(batch), protocol, out).statistics, out)
    assert told["protocol"] == protocol.model_dump()
    line = describe(told)
    assert line == f"{out}: 12 images of {SIDE} pixels, 5 features (tiny)"
    told["images"] |= {"rejected": 2, "correct": 3}
    line = describe(told)
    assert "pixels, 2 unreadable, 5 features" in line
    assert line.endswith(", 25.0% classified as labelled")
