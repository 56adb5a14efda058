"""The Beam pipeline equals a direct computation, whatever the order of its bundles, and says what
went wrong.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from evaluation.features import pipeline, range_files
from evaluation.features.imagesets import DatasetImages, dataset_images
from evaluation.features.pipeline import (
    Config,
    InOrder,
    Outcome,
    Range,
    cut,
    define_pipeline,
    finish,
    measure,
    measured_of,
    parts_key,
)
from evaluation.features.sums import read_sums, write_sums
from evaluation.protocols import EvaluationProtocol, Recipe
from schemas.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.conftest import World


@pytest.fixture
def config(
    world: World, tiny_protocol: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    monkeypatch.setattr(pipeline, "FOLD", 4)
    monkeypatch.setattr(pipeline.cut, "__defaults__", (4, 2))  # ranges of a few images
    protocol = EvaluationProtocol.resolve(tiny_protocol, tiny.TinyExtractor(), tiny.SIDE)
    return Config(dataset_images(world.dataset), protocol, str(tmp_path / "out.npz"))


def test_equals_direct_computation(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def noted(part: Range, config: Config) -> Outcome:
        # the function travels as a copy
        (tmp_path / f"range{part.index}").write_text(f"{part.start} {part.stop}")
        return measure(part, config)

    monkeypatch.setattr(pipeline, "measure", noted)
    statistics = pipeline.run(config)
    spans = [path.read_text() for path in sorted(tmp_path.glob("range*"))]
    assert spans == ["0 7", "7 15", "15 22", "22 30"], "the work was cut"
    batch = config.images.read(0, config.images.size)
    extractor = tiny.TinyExtractor()
    features, logits, _ = extractor(batch.images)
    np.testing.assert_allclose(statistics.mu, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        statistics.sigma, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9
    )
    named = [extractor.class_names[i] for i in logits.argmax(axis=1)]
    correct = sum(
        name == tiny.CLASSES[label] for name, label in zip(named, batch.labels, strict=True)
    )
    assert 0 < correct < 30
    images = statistics.protocol["images"]
    assert images == {**config.images.facts(), "n": 30, "rejected": 0, "correct": correct}
    assert statistics.moments is not None
    assert statistics.moments.n == 30


def test_the_same_images_always_give_the_same_bytes(config: Config) -> None:
    first = pipeline.run(config)
    kept = Path(config.out).read_bytes()
    assert not list(Path(config.out).parent.glob("*.parts")), "of no use any more"
    done = [measure(part, config) for part in cut(config.images.size)]
    combine = InOrder()
    one = combine.add_input(combine.add_input(combine.create_accumulator(), done[3]), done[0])
    two = combine.add_input(combine.add_input(combine.create_accumulator(), done[2]), done[1])
    finish(combine.extract_output(combine.merge_accumulators([two, one])), config)
    assert Path(config.out).read_bytes() == kept
    assert first.dim == 5


@pytest.mark.parametrize(
    ("size", "count"), [(2, 1), (511, 1), (512, 2), (4000, 15), (50_000, 16), (10**7, 16)]
)
def test_ranges_cover_every_image_once(size: int, count: int) -> None:
    ranges = cut(size, most=16, fewest=256)
    assert len(ranges) == count
    assert ranges[0].start == 0
    assert ranges[-1].stop == size
    assert all(left.stop == right.start for left, right in itertools.pairwise(ranges))
    assert [part.index for part in ranges] == list(range(count))


def test_a_lost_range_is_noticed(config: Config) -> None:
    done = [measure(part, config) for part in cut(config.images.size)]
    with pytest.raises(RuntimeError, match="ranges"):
        finish(done[:1], config)
    with pytest.raises(RuntimeError, match="ranges"):
        finish([done[0], *done], config)
    path, of = range_files.sums_path(Path(config.out), parts_key(config), 1), measured_of(config)
    found = read_sums(path, of)
    assert found is not None
    write_sums(path, replace(found, rejected=found.rejected + 1), of)
    with pytest.raises(RuntimeError, match="30 features and 1 rejects of 30"):
        finish(done, config)
    assert not Path(config.out).exists()


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_killed_run_measured_is_not_measured_again(
    keep: bool, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(config, keep_features=keep)
    pipeline.run(config)
    undisturbed = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    assert len(undisturbed) == 1 + keep
    for path in tmp_path.glob("out.*"):
        path.unlink()
    ranges = cut(config.images.size)
    for part in ranges[:2]:  # then it was killed, in the midst of the third
        measure(part, config)
    (range_files.folder(Path(config.out), parts_key(config)) / ".00002.npz.1.tmp").write_bytes(
        b"PK half a fi"
    )
    monkeypatch.setattr(pipeline, "_measure", noted(tmp_path / "measured", pipeline._measure))
    pipeline.run(config)
    assert (tmp_path / "measured").read_text().split() == ["2", "3"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*")} == undisturbed


@pytest.mark.parametrize("other", ["images", "state", "rows", "damaged", "no rows", "half rows"])
def test_parts_of_something_else_are_measured_again(
    other: str, config: Config, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = Path(config.out)
    if other.endswith("rows"):
        config = replace(config, keep_features=True)
    first = {
        "images": replace(config, images=dataset_images(world.dataset, num=29)),
        "rows": replace(config, keep_features=False),
        "state": replace(config, images=Touched(**vars(config.images))),
    }.get(other, config)
    for part in cut(first.images.size):
        measure(part, first)
    for path in range_files.folder(out, parts_key(first)).iterdir():
        if other == "no rows" and path.suffix == ".rows":
            path.unlink()
        elif other == "damaged" or (other == "half rows" and path.suffix == ".rows"):
            path.write_bytes(path.read_bytes()[:-40])
    monkeypatch.setattr(pipeline, "_measure", noted(tmp_path / "measured", pipeline._measure))
    statistics = pipeline.run(config)
    assert (tmp_path / "measured").read_text().split() == ["0", "1", "2", "3"]
    assert statistics.moments is not None
    assert statistics.moments.n == 30


def test_parts_of_two_settings_do_not_mix(config: Config, world: World) -> None:
    """As when workers outlive a command that was killed, and another one begins."""
    config = replace(config, keep_features=True)
    pipeline.run(config)
    alone = Path(config.out).read_bytes()
    done = [measure(part, config) for part in cut(config.images.size)]
    measure(cut(29)[2], replace(config, images=dataset_images(world.dataset, num=29)))
    assert finish(done, config)
    assert Path(config.out).read_bytes() == alone
    pipeline.run(config)
    assert not range_files.root(Path(config.out)).exists(), "both are of no use any more"


def test_parts_that_are_gone_are_told_in_one_line(config: Config) -> None:
    done = [measure(part, config) for part in cut(config.images.size)]
    range_files.sums_path(Path(config.out), parts_key(config), 2).unlink()
    assert not finish(done, config)
    assert (
        "something else wrote or deleted there; repeat the command"
        in pipeline.failure_path(config).read_text()
    )
    assert not Path(config.out).exists()


def test_the_last_step_may_be_repeated(config: Config) -> None:
    done = [measure(part, config) for part in cut(config.images.size)]
    assert finish(done, config) == finish(done, config) == config.out


@pytest.mark.parametrize("keep", [False, True])
def test_a_disk_that_is_full_in_the_last_step_is_told_in_one_line(
    keep: bool, config: Config, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    config = replace(config, keep_features=keep)
    disk = small_disk("size=64k")
    config = replace(config, out=str(disk / "out.npz"))
    for part in cut(config.images.size):
        measure(part, config)
    free = shutil.disk_usage(disk).free
    (disk / "in the way").write_bytes(bytes(free))
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); mend that and repeat"
    ):
        pipeline.run(config)
    (disk / "in the way").unlink()
    assert pipeline.run(config).dim == 5


def test_a_folder_that_cannot_be_made_is_told_in_one_line(config: Config) -> None:
    Path(f"{config.out}.parts").write_text("in the way")
    with pytest.raises(UserError, match=r"out\.npz\.parts.*cannot be written"):
        pipeline.run(config)


class Touched(DatasetImages):
    """Files of other content under the same names."""

    def state(self) -> str:
        return "touched"


def noted(file: Path, function: Callable[[Range, Config], Any]) -> Callable[[Range, Config], Any]:
    """`function` that adds the index of its range to a file; it travels to workers as a copy."""

    def call(part: Range, config: Config) -> Any:
        with open(file, "a") as stream:
            stream.write(f"{part.index} ")
        return function(part, config)

    return call


def test_a_broken_shard_is_told_in_one_line(world: World, config: Config, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    manifest = tiny.make_dataset(broken, world.vae)
    images = dataset_images(broken)
    shard = broken / manifest.shards[1].name
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match=r"latents-train\.array_record-00001"):
        pipeline.run(Config(images, config.protocol, config.out))
    assert not Path(config.out).exists()
    assert not pipeline.failure_path(config).exists()


def test_the_graph_is_linear(config: Config) -> None:
    root = beam.Pipeline()
    define_pipeline(root, config)
    # Graphs that branch are silently wrong on some runners: each value is used once.
    producers = {output for node in _leaves(root) for output in node.outputs.values()}
    consumed = [value for node in _leaves(root) for value in node.inputs]
    assert len(producers) > 4
    assert len(consumed) == len(set(consumed))


def _leaves(root: beam.Pipeline) -> list[AppliedPTransform]:
    found: list[AppliedPTransform] = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, transform_node: AppliedPTransform) -> None:
            found.append(transform_node)

    root.visit(Visitor())
    return found
