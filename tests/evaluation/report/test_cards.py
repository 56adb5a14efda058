"""The words and numbers of a report, from runs and results made up."""

import pytest

from evaluation.report import cards
from evaluation.results import Result
from tests.evaluation.conftest import World
from tests.evaluation.results import result

METRICS = [
    {"step": 10, "loss": 2.0, "images_per_s": 4.0, "data_wait": 0.5},
    {"step": 20, "loss": 1.0, "images_per_s": 8.0, "data_wait": 0.1},
    {"step": 30, "loss": 0.5, "images_per_s": 2.0},
]


def timed(seconds: dict[str, float], **others: float) -> Result:
    one = result(distance=others.get("distance", 1.5))
    return one.model_copy(update={"seconds": seconds})


def test_the_best_of_the_settings_is_at_the_top(world: World) -> None:
    series = [
        result(steps=5, distance=9.0, accuracy=0.9),
        result(steps=20, distance=0.25, accuracy=0.5),
        result(steps=10, distance=3.0, accuracy=0.9),
        result(steps=1, distance=4.0, accuracy=None),
    ]
    distance, accuracy, steps, size = cards.headline(world.run, METRICS, series)
    assert (distance.value, distance.detail) == ("0.250", "20 steps, no guidance")
    assert (accuracy.value, accuracy.detail) == ("90.0%", "10 steps, no guidance"), (
        "of equals the nearest to the reference"
    )
    assert (steps.value, steps.detail) == ("30", "batches of 4")
    assert size.value == f"{world.run.parameters:,}"
    assert cards.headline(world.run, [], []) == [size]
    assert cards.most_accurate([result(accuracy=None)]) is None


def test_training_is_told_by_its_last_line_and_its_median_rate() -> None:
    assert cards.training([]) == []
    assert dict(cards.training(METRICS)) == {
        "step": "30",
        "loss": "0.5000",
        "images/s": "4 (median)",
        "waiting for data": "30.0% of the time",
    }
    assert [name for name, _ in cards.training([{"step": 1, "loss": 1.0}])] == ["step", "loss"]


def test_seconds_of_the_stages_add_up(world: World) -> None:
    """Of ten steps each at 4, 8 and 2 images a second, in batches of 4: 10, 5 and 20 seconds."""
    series = [
        timed({"generate": 5.0, "measure": 2.0, "score": 1.0}),
        timed({"measure": 2.0, "score": 0.0}),
    ]
    train, sample, measure, score = cards.times(world.run, METRICS, series)
    assert [stage.seconds for stage in (train, sample, measure, score)] == [35.0, 5.0, 4.0, 1.0]
    assert [stage.share for stage in (train, sample, measure, score)] == pytest.approx(
        [35 / 45, 5 / 45, 4 / 45, 1 / 45]
    )
    assert [stage.rate for stage in (train, sample, measure, score)] == ["3.4", "2", "5", ""]
    assert (sample.name, sample.nfe) == ("sample, 20 steps, no guidance", "20")
    assert measure.detail == "20 images"
    assert cards.times(world.run, [], []) == []


def test_the_sentence_names_data_and_latents(world: World) -> None:
    told = cards.summary(world.run)
    assert "trained by flow matching on 30 records of none (train, 3 classes)" in told
    assert told.endswith(f"as 4 x 4 x 4 latents of the VAE {world.vae.id}.")
    pixels = world.run.model_copy(update={"vae": None, "classes": ("all",)})
    assert cards.summary(pixels).endswith("(train, no classes), as 4 x 4 x 4 pixels.")


def test_a_dataset_that_is_gone_is_told_by_the_run(world: World) -> None:
    there, gone = (dict(cards.dataset(world.run, one)) for one in (world.manifest, None))
    assert there["records"] == "30 written, 0 rejected, 0 duplicate"
    assert there["classes"] == "zero, one, two"
    assert there["digest"] == gone["digest"] == world.manifest.digest()[:16]
    assert gone["records"] == "30"
    assert gone["path"] == f"{world.dataset} (not reachable now)"


def test_the_protocol_says_what_is_no_fid() -> None:
    fd = dict(cards.protocol(result()))
    assert fd["distance"].endswith("not an FID")
    assert fd["reference"].startswith("100 images of embedded:digits, digest dddddddddddd")
    inception = result().protocol.model_copy(update={"key": "fid", "metric": "FID"})
    fid = dict(cards.protocol(result().model_copy(update={"protocol": inception})))
    assert "not an FID" not in fid["distance"]
    compared = cards.protocol(result().model_copy(update={"sampling": None}))
    assert "sampler" in fd
    assert "sampler" not in dict(compared)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "0.0001"), (2.0, "2"), (True, "true"), (7, "7"), ("cosine", "cosine")],
)
def test_values_as_toml_has_them(value: object, text: str) -> None:
    assert cards.value_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.94, "99.9 s"), (100.4, "100 s"), (12345.6, "12,346 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert cards.duration(seconds) == text
