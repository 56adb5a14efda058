"""`eval` of a run: each number once, whatever was killed; mistakes are told before any work."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from evaluation.draw.setting import Setting
from evaluation.evaluate import Request, check_training_set, evaluate, plan, write_outputs
from evaluation.features.imagesets import dataset_images
from evaluation.report import cards
from evaluation.results import read_results
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, write_manifest
from schemas.run import DatasetRef
from schemas.sampler import SamplerSettings
from tests.evaluation import tiny
from tests.evaluation.commands import succeed
from tests.evaluation.conftest import World
from tests.evaluation.results import result

pytestmark = pytest.mark.usefixtures("tiny_protocol")


def test_eval_writes_results_once_and_reads_them_back(workdir: Path, reference: Path) -> None:
    options = [
        "--reference",
        reference,
        "--steps",
        "3,1",
        "--cfg",
        "1,2",
        "--num-samples",
        20,
        "--protocol",
        "tiny",
    ]
    shown = succeed("eval", workdir, *options, "--json")
    lines = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
    assert [(line["steps"], line["cfg"], line["nfe"]) for line in lines] == [
        (3, 1, 3),
        (1, 1, 1),
        (3, 2, 6),
        (1, 2, 2),
    ]
    assert all(line["fd"] > 0 and 0 <= line["accuracy"] <= 1 and line["n"] == 20 for line in lines)
    assert len({line["fd"] for line in lines}) == 4
    tables = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in shown.stdout.splitlines()
        if "|" in line
    ]
    assert tables[0] == ["model", "steps", "FD(tiny), no guidance", "FD(tiny), cfg 2"]
    assert tables[3] == [
        "steps",
        "FD(tiny), cfg 1",
        "accuracy, cfg 1",
        "FD(tiny), cfg 2",
        "accuracy, cfg 2",
    ]
    assert tables[2][2:] == tables[5][1::2], "the model's row is that of its recipe's steps"
    outputs = (
        "table.md",
        "results.json",
        "distance.svg",
        "distance.png",
        "accuracy.svg",
        "accuracy.png",
    )
    assert all((workdir / "eval" / name).stat().st_size > 100 for name in outputs)
    written = (workdir / "results.jsonl").read_bytes()
    shutil.rmtree(workdir / "samples")
    again = succeed("eval", workdir, *options, "--json")
    assert [json.loads(line) for line in again.stdout.splitlines() if line.startswith("{")] == lines
    assert (workdir / "results.jsonl").read_bytes() == written
    assert not (workdir / "samples").exists(), "nothing was drawn again"


@pytest.mark.usefixtures("unrendered")
def test_results_of_solvers_and_weights_are_kept_apart(workdir: Path, reference: Path) -> None:
    tiny.as_diffusion(workdir)
    options = [
        "--reference",
        reference,
        "--steps",
        "2",
        "--cfg",
        "1",
        "--num-samples",
        10,
        "--protocol",
        "tiny",
    ]
    assert "EMA weights of step 3, ddim, seed 0" in succeed("eval", workdir, *options).stdout
    succeed("eval", workdir, *options, "--solver", "ddpm", "--weights", "params")
    first, second = (result.sampling for result in read_results(workdir))
    assert first is not None
    assert second is not None
    assert (first.sampler, first.weights, second.sampler, second.weights) == (
        "ddim",
        "ema",
        "ddpm",
        "params",
    )
    assert {path.name.split("-cfg")[0] for path in (workdir / "samples").iterdir()} == {
        "step3-ema-ddim2",
        "step3-params-ddpm2",
    }


@pytest.mark.usefixtures("unrendered")
def test_eval_goes_on_where_it_was_killed(workdir: Path, reference: Path) -> None:
    options = ["--reference", reference, "--cfg", "2", "--num-samples", 20, "--protocol", "tiny"]
    succeed("eval", workdir, *options, "--steps", "3")
    (sample_set,) = (workdir / "samples").iterdir()
    shard = next(sample_set.glob("*.array_record*"))
    first, stamp = read_results(workdir), shard.stat().st_mtime_ns
    (workdir / "results.jsonl").unlink()  # as if killed before the result was written
    succeed("eval", workdir, *options, "--steps", "3")
    assert read_results(workdir)[0].distance == first[0].distance
    assert shard.stat().st_mtime_ns == stamp
    (cached,) = (workdir / "eval" / "statistics").glob("*.npz")
    whole = cached.read_bytes()
    (workdir / "results.jsonl").unlink()
    cached.write_bytes(whole[:100])  # as a disk may leave it
    succeed("eval", workdir, *options, "--steps", "3")
    assert cached.read_bytes() == whole
    assert read_results(workdir)[0].distance == first[0].distance
    (workdir / "results.jsonl").unlink()
    shutil.rmtree(workdir / "eval")
    (sample_set / MANIFEST_NAME).unlink()  # as if killed while sampling
    shard.unlink()
    succeed("eval", workdir, *options, "--steps", "3")
    assert read_results(workdir)[0].distance == first[0].distance


@pytest.mark.usefixtures("unrendered")
def test_a_dataset_serves_as_reference(workdir: Path, world: World, reference: Path) -> None:
    options = ["--steps", "1", "--cfg", "1", "--num-samples", 10, "--protocol", "tiny"]
    warned = succeed("eval", workdir, "--reference", world.dataset, *options).stderr
    assert (
        "decoded latents, a reference that hides the VAE's own error; use `flowtrain stats`"
        in warned
    )
    assert list((workdir / "eval").glob("reference-*-tiny.npz"))
    succeed("eval", workdir, "--reference", reference, *options)
    (only,) = read_results(workdir)  # the same statistics, so the same setting: not measured twice
    assert only.reference.n == 30
    assert "hides the VAE's own error" in dict(cards.protocol(only))["reference"]
    # no VAE: the numbers are pixels
    raw = Path(shutil.copytree(world.dataset, reference.parent / "raw"))
    write_manifest(raw, world.manifest.model_copy(update={"vae": None}))
    assert not dataset_images(raw).decoded


@pytest.mark.usefixtures("unrendered")
def test_nearest_training_images_are_shown(workdir: Path, reference: Path) -> None:
    options = ["--steps", "2", "--cfg", "1", "--num-samples", 20, "--protocol", "tiny"]
    succeed("eval", workdir, "--reference", reference, *options, "--neighbours", 3)
    (picture,) = (workdir / "eval").glob("neighbours-*-tiny-3.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


Bar = Any  # a `tqdm`
Make = Callable[..., Bar]


@pytest.fixture
def bars() -> list[Bar]:
    return []


@pytest.fixture
def make_bar(bars: list[Bar]) -> Make:
    def make(*, total: int, desc: str, unit: str) -> Bar:
        bars.append(tqdm(total=total, desc=desc, unit=unit, file=io.StringIO()))
        return bars[-1]

    return make


def request(workdir: Path, reference: Path, *cfg: float, num: int = 4, **others: str) -> Request:
    settings = [Setting(num, SamplerSettings("euler", 1, weight)) for weight in cfg]
    return Request(workdir, reference, tiny.RECIPE, tuple(settings), **others)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unrendered")
def test_the_bar_counts_every_sample_also_of_results_that_are_there(
    workdir: Path, reference: Path, bars: list[Bar], make_bar: Make
) -> None:
    told: list[str] = []
    two = request(workdir, reference, 2.0, 3.0)
    found = evaluate([two], told.append, make_bar)
    assert (bars[0].total, bars[0].n) == (8, 8)
    three = [request(workdir, reference, 2.5), two, request(workdir, reference, 2.5)]
    more = evaluate(three, told.append, make_bar)
    assert more == [more[0], *found, more[0]]
    sweep = next(each for each in bars[1:] if each.unit == "sample")
    assert (sweep.total, sweep.n) == (16, 16)
    assert read_results(workdir) == [*found, more[0]]
    ranks = [line for line in told if line.startswith("4 samples give a covariance of rank 3")]
    assert len(ranks) == 2, "once a command, however many requests it has"


@pytest.mark.usefixtures("unrendered")
def test_a_mistake_in_the_last_request_is_told_before_the_first_is_begun(
    workdir: Path, reference: Path, bars: list[Bar], make_bar: Make
) -> None:
    good = request(workdir, reference, 1.0)
    bad = request(workdir, reference, 1.0, weights="ema0.5")
    with pytest.raises(UserError, match=r"no weights 'ema0\.5'"):
        evaluate([good, bad], lambda line: None, make_bar)
    assert not (workdir / "samples").exists()
    assert bars == []


def test_neighbours_are_looked_for_in_the_dataset_of_the_run_alone(
    world: World, tmp_path: Path
) -> None:
    check_training_set(world.run)
    manifest = tiny.make_dataset(tmp_path / "other", world.vae, records=6, shards=1)
    reference = DatasetRef.of(str(tmp_path / "other"), manifest)
    check_training_set(world.run.model_copy(update={"dataset": reference}))
    moved = world.run.dataset.model_copy(update={"path": str(tmp_path / "other")})
    with pytest.raises(UserError, match="other: not the dataset that the run was trained on"):
        check_training_set(world.run.model_copy(update={"dataset": moved}))


@pytest.mark.usefixtures("unrendered")
def test_plots_of_other_results_do_not_stay(workdir: Path) -> None:
    write_outputs(workdir, [result(5, 1), result(20, 1)])
    plots = {path.name for path in (workdir / "eval").iterdir()}
    assert plots >= {"accuracy.svg", "accuracy.png", "distance.svg", "distance.png", "table.md"}
    without = [result(5, 1, accuracy=None)]
    write_outputs(workdir, without)
    assert plots - {path.name for path in (workdir / "eval").iterdir()} == {
        "accuracy.svg",
        "accuracy.png",
    }
    content = json.loads((workdir / "eval" / "results.json").read_text())
    assert content == [json.loads(json.dumps(each.to_json())) for each in without]


def test_the_plan_of_a_sweep_counts_all_of_it(workdir: Path, reference: Path, world: World) -> None:
    requests = [
        request(workdir, reference, 1.0, 2.0),
        request(workdir, reference, 1.0, num=1000, weights="params"),
    ]
    facts = plan(requests, world.run)
    assert facts["checkpoint"] == "newest, ema, params weights"
    assert facts["settings"] == "3: euler, steps 1; guidance 1, 2"
    assert facts["samples"] == "4, 1000 a setting, 1,008 in all"
    assert facts["network evaluations"] == f"{4 * 1 + 4 * 2 + 1000:,}"
    assert facts["protocol"] == "tiny, printed as FD(tiny)"
    adaptive = Setting(5, SamplerSettings("dopri5", 0, 1.0))
    also = Request(workdir, reference, tiny.RECIPE, (adaptive, requests[0].settings[0]))
    assert plan([also], world.run)["network evaluations"] == "4 and what adaptive solvers need"
    assert not (workdir / "eval").exists()
