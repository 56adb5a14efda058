"""Sweeps, metrics beside the distance, and how samples may be drawn, through the command."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from evaluation.features.measure import Measured
from evaluation.features.rows import rows_path
from evaluation.metrics import frechet_distance
from evaluation.metrics.neighbours import precision_recall
from evaluation.protocols import PROTOCOLS, EvaluationProtocol
from evaluation.results import RESULTS_NAME, read_results
from evaluation.score.groups import choose, with_reference
from pipelines.dataset.finished import LatentDataset
from schemas.errors import UserError
from schemas.locked import locked
from schemas.statistics import read_statistics
from tests.evaluation.commands import fail, start, succeed
from tests.evaluation.conftest import World

pytestmark = pytest.mark.usefixtures("tiny_protocol", "unrendered")
QUICK = ["--steps", "2", "--cfg", "1", "--num-samples", 20, "--protocol", "tiny"]


@pytest.fixture
def reference(world: World, tmp_path: Path) -> Path:
    out = tmp_path / "reference.npz"
    succeed("stats", world.dataset, out, "--extractor", "tiny", "--features")
    return out


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


# Sweeps


def test_a_sweep_is_every_combination_and_is_not_computed_twice(
    workdir: Path, reference: Path
) -> None:
    command = ["eval", workdir, "--reference", reference, *QUICK, "--json"]
    command += ["--sweep", "solver=euler,sde", "--sweep", "seed=0,1", "--sweep", "steps=1,2"]
    found = lines_of(succeed(*command).stdout)
    assert [(line["sampler"], line["seed"], line["steps"]) for line in found] == [
        (solver, seed, steps) for solver in ("euler", "sde") for seed in (0, 1) for steps in (1, 2)
    ]
    assert len({str(line["fd"]) for line in found}) == 8
    written = (workdir / RESULTS_NAME).read_bytes()
    assert lines_of(succeed(*command).stdout) == found
    assert (workdir / RESULTS_NAME).read_bytes() == written
    assert (workdir / "eval" / "table.md").read_text().count("Lower is better") == 4


def test_mistakes_of_a_sweep_are_told_before_anything_is_drawn(
    workdir: Path, reference: Path
) -> None:
    command = ["eval", workdir, "--reference", reference, *QUICK]
    assert "no checkpoint of step 7; there are 3" in fail(*command, "--sweep", "step=3,7")
    assert "no checkpoint of step 7; there are 3" in fail(
        *command, "--sweep", "step=3,7", "--dry-run"
    )
    assert "measured with extractor tiny" in fail(*command, "--sweep", "protocol=tiny,embedded")
    assert not (workdir / "samples").exists()


@pytest.mark.parametrize(
    ("sweep", "line"),
    [
        ("depth=1", "write KEY=VALUE,VALUE with a key of step, weights"),
        ("seed", "write KEY=VALUE,VALUE"),
        ("seed=a,b", "'a,b' is not numbers"),
        ("steps=0", "each must be above 0"),
        ("seed=-1", "none may be below 0"),
        ("weights=nothing", "no weights 'nothing'"),
        ("protocol=nothing", "unknown protocol 'nothing'"),
        ("solver=nothing", "--solver nothing does not go with"),
    ],
)
def test_mistakes_in_a_sweep(workdir: Path, reference: Path, sweep: str, line: str) -> None:
    assert line in fail(
        "eval", workdir, "--reference", reference, "--protocol", "tiny", "--sweep", sweep
    )
    twice = ["--sweep", "seed=0", "--sweep", "seed=1"]
    assert "is given twice" in fail(
        "eval", workdir, "--reference", reference, "--protocol", "tiny", *twice
    )


def test_a_killed_sweep_of_ten_settings_ends_with_the_same_numbers(
    world: World, workdir: Path, reference: Path, tmp_path: Path
) -> None:
    arguments = [
        "--reference",
        reference,
        "--num-samples",
        20,
        "--protocol",
        "tiny",
        "--batch-size",
        8,
    ]
    arguments += ["--metrics", "pr", "--sweep", "steps=1,2,3,4,5", "--sweep", "cfg=1,2"]
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(["cp", "-r", str(workdir), str(undisturbed)], check=True)
    succeed("eval", undisturbed, *arguments)
    expected = {
        (r.sampling, r.distance, *sorted(r.metrics.items())) for r in read_results(undisturbed)
    }
    assert len(expected) == 10
    chance, kills = random.Random(0), 0
    for wanted in (0, 3, 6):  # results that are there, then a moment more
        process = start("eval", workdir, *arguments)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            begun = wanted or (workdir / "samples").exists()
            if begun and len(read_results(workdir)) >= wanted:
                time.sleep(chance.uniform(0, 0.4))
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    succeed("eval", workdir, *arguments)
    assert {
        (r.sampling, r.distance, *sorted(r.metrics.items())) for r in read_results(workdir)
    } == expected
    assert len(read_results(workdir)) == 10


# Metrics


def test_metrics_are_those_of_the_kept_rows(workdir: Path, reference: Path) -> None:
    command = ["eval", workdir, "--reference", reference, *QUICK, "--json"]
    (plain,) = lines_of(succeed(*command).stdout)
    assert plain["metrics"] == {}
    shown = succeed(*command, "--metrics", "pr,dc")
    (line,) = lines_of(shown.stdout)
    assert line["fd"] == plain["fd"]
    assert {*line["metrics"]} == {"precision", "recall", "density", "coverage"}  # type: ignore[misc]
    assert "| precision |" in shown.stdout
    (statistics,) = (workdir / "eval" / "statistics").glob("*.npz")
    rows, real = np.load(rows_path(statistics)), np.load(rows_path(reference))
    assert rows.shape == (20, 5)
    subject = read_statistics(statistics)
    np.testing.assert_allclose(rows.astype(np.float64).mean(0), subject.mu, rtol=1e-12)
    assert (line["metrics"]["precision"], line["metrics"]["recall"]) == precision_recall(real, rows)  # type: ignore[index]
    two = [result.metrics for result in read_results(workdir)]
    assert two == [{}, line["metrics"]], "added to what was known"
    (again,) = lines_of(succeed(*command, "--metrics", "pr").stdout)
    assert again == line
    whole = rows_path(statistics).read_bytes()
    rows_path(statistics).write_bytes(whole[:-100])  # as a disk may leave it
    (workdir / RESULTS_NAME).unlink()
    (mended,) = lines_of(succeed(*command, "--metrics", "pr,dc").stdout)
    assert mended["metrics"] == line["metrics"]
    assert rows_path(statistics).read_bytes() == whole
    (workdir / RESULTS_NAME).write_text("".join(f"{json.dumps(each)}\n" for each in (plain, line)))
    assert len(read_results(workdir)) == 2


def test_uncertainty_of_more_samples(workdir: Path, reference: Path) -> None:
    options = [
        "--steps",
        "1",
        "--cfg",
        "1",
        "--num-samples",
        1000,
        "--protocol",
        "tiny",
        "--metrics",
        "uncertainty",
    ]
    (line,) = lines_of(
        succeed("eval", workdir, "--reference", reference, *options, "--json").stdout
    )
    metrics = line["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["fd_infinity"] < line["fd"] < metrics["fd_parts"], "the bias falls with n"  # type: ignore[operator]


def test_an_uncertainty_of_too_few_samples_is_warned_of() -> None:
    facts = PROTOCOLS["adm"].model_dump()
    protocol = EvaluationProtocol(**facts, extractor_digest="0" * 64, dim=2048, resolution=256)
    told: list[str] = []
    assert choose(["uncertainty"], protocol, 4097, told.append) == ("uncertainty",)
    assert told == [
        "the distance at n = inf comes from subsets of 2048 to 4097 samples in 2048 dimensions, "
        "where it is no line in 1/n; use at least 4098 samples"
    ]
    assert choose(["uncertainty"], protocol, 4098, told.append) == ("uncertainty",)
    assert len(told) == 1


def test_what_a_reference_lacks_is_left_out_of_all_and_refused_by_name(reference: Path) -> None:
    measured, told = Measured(read_statistics(reference), reference), list[str]()
    assert with_reference(("sfid", "pr", "kid"), ["all"], measured, told.append) == ("pr",)
    lacking = "left out, as it lacks what they need: sfid (spatial features), kid (1000 images)"
    assert told == [f"{reference}: {lacking}"]
    with pytest.raises(
        UserError, match=r"reference\.npz: 30 images; --metrics kid needs at least 1000"
    ):
        with_reference(("kid",), ["kid"], measured)
    with pytest.raises(UserError, match="holds no spatial features, so no sFID"):
        with_reference(("sfid",), ["sfid"], measured)
    assert with_reference(("sfid", "is"), [], measured, told.append) == ("is",)
    assert len(told) == 1, "nobody asked for it"


def test_scores_of_ten_parts_need_ten_samples() -> None:
    protocol = EvaluationProtocol(
        **PROTOCOLS["torch-fidelity"].model_dump(),
        extractor_digest="0" * 64,
        dim=2048,
        resolution=256,
    )
    assert choose(["is"], protocol, 10) == ("is",)
    with pytest.raises(UserError, match="--metrics is: needs at least 10 samples, not 9"):
        choose(["is"], protocol, 9)


def test_two_commands_take_turns_at_one_file(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with locked(tmp_path / ".out.npz.lock"):
        process = start("stats", world.dataset, out, "--extractor", "tiny")
        deadline = time.monotonic() + 60
        while "waiting for another command that is at work" not in process.text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not out.exists()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert read_statistics(out).dim == 5


def test_mistakes_about_metrics(
    workdir: Path, world: World, reference: Path, tmp_path: Path
) -> None:
    command = ["eval", workdir, "--reference", reference, *QUICK]
    assert "--metrics fid: unknown; known are sfid, is, pr" in fail(*command, "--metrics", "fid")
    assert "--metrics sfid: protocol tiny has none; take --protocol adm" in fail(
        *command, "--metrics", "sfid"
    )
    assert "--metrics kid: needs at least 1000 samples, not 20" in fail(
        *command, "--metrics", "kid"
    )
    sums = tmp_path / "sums.npz"
    succeed("stats", world.dataset, sums, "--extractor", "tiny")
    command = ["eval", workdir, "--reference", sums, *QUICK, "--metrics", "pr"]
    assert "holds sums only; repeat its `flowtrain stats` with --features" in fail(*command)
    rows = rows_path(reference)
    rows.write_bytes(rows.read_bytes()[:-4] + b"\0\0\0\0")
    assert "missing or not the rows of" in fail(
        "eval", workdir, "--reference", reference, *QUICK, "--metrics", "pr"
    )
    assert not (workdir / "samples").exists(), "told before any work"


def test_spatial_features_and_scores_survive_in_statistics(reference: Path, tmp_path: Path) -> None:
    """As ADM's reference batches have them: mu_s, sigma_s."""
    good = read_statistics(reference)
    assert good.labels is not None
    assert good.labels.tolist() == [10, 10, 10]
    rng = np.random.default_rng(0)
    mu, sigma = rng.normal(size=3), np.cov(rng.normal(size=(3, 9)))
    path = tmp_path / "adm.npz"
    np.savez(
        path,
        arr_0=np.zeros((2, 8, 8, 3), np.uint8),
        mu=good.mu,
        sigma=good.sigma,
        mu_s=mu,
        sigma_s=sigma,
    )
    read = read_statistics(path)
    assert read.spatial is not None
    assert frechet_distance(*read.spatial, mu, sigma) == pytest.approx(0, abs=1e-12)


# How samples are drawn


def test_an_adaptive_solver_counts_what_it_takes(workdir: Path, reference: Path) -> None:
    command = [
        "eval",
        workdir,
        "--reference",
        reference,
        *QUICK[2:],
        "--solver",
        "dopri5",
        "--json",
    ]
    shown = succeed(*command, "--sweep", "tolerance=0.1,0.001")
    rough, fine = lines_of(shown.stdout)
    assert (rough["steps"], rough["nfe"], rough["tolerance"]) == (0, None, 0.1)
    assert 8 <= rough["mean_nfe"] < fine["mean_nfe"]  # type: ignore[operator]
    assert "adaptive" in shown.stdout
    folder = next(path for path in (workdir / "samples").iterdir() if "tol0.001" in path.name)
    assert "--solver dopri5" in LatentDataset(folder).manifest.command
    assert "--tolerance 0.001" in LatentDataset(folder).manifest.command
    again = lines_of(succeed(*command, "--sweep", "tolerance=0.1,0.001").stdout)
    assert again == [rough, fine]


def test_classes_follow_a_rule(
    workdir: Path, world: World, reference: Path, tmp_path: Path
) -> None:
    def drawn(*options: object) -> list[int]:
        out = tmp_path / "drawn.npz"
        succeed("sample", workdir, out, "--num", 60, "--steps", 1, "--cfg", 1, *options)
        with np.load(out) as batch:
            return batch["arr_1"].tolist()

    assert drawn() == [0, 1, 2] * 20
    uniform = drawn("--labels", "uniform")
    assert sorted({*uniform}) == [0, 1, 2]
    assert uniform != drawn("--labels", "uniform", "--seed", 1)
    assert uniform == drawn("--labels", "uniform", "--batch-size", 7), "of (seed, i) alone"
    good = read_statistics(reference)
    skewed = tmp_path / "skewed.npz"
    classes = np.array(["two", "one", "zero"])  # in another order
    np.savez(skewed, mu=good.mu, sigma=good.sigma, labels=np.array([10, 0, 30]), classes=classes)
    labels = drawn("--labels", skewed)
    assert 1 not in labels
    assert 35 <= labels.count(0) <= 53  # 45 expected, deviation 3.4
    np.savez(skewed, mu=good.mu, sigma=good.sigma, labels=np.array([30, 10]), classes=classes[:2])
    assert "'zero' is in one of them only" in fail(
        "sample", workdir, tmp_path / "x.npz", "--labels", skewed
    )
    np.savez(skewed, mu=good.mu, sigma=good.sigma, labels=np.array(["a", "b"]))
    assert "holds no counts of classes" in fail(
        "sample", workdir, tmp_path / "x.npz", "--labels", skewed
    )


def test_shift_and_interval_change_the_samples_and_their_names(
    workdir: Path, tmp_path: Path
) -> None:
    def latents(name: str, *options: object) -> np.ndarray:
        succeed("sample", workdir, tmp_path / name, "--num", 4, "--steps", 4, "--cfg", 3, *options)
        dataset = LatentDataset(tmp_path / name)
        return np.stack([record.tensors["latent"] for record in dataset.records()]).astype(
            np.float32
        )

    plain = latents("plain")
    np.testing.assert_array_equal(latents("all", "--cfg-interval", "0,1", "--shift", "1"), plain)
    some, moved = latents("some", "--cfg-interval", "0.5,1"), latents("moved", "--shift", "3")
    assert np.abs(some - plain).max() > 1e-3
    assert np.abs(moved - plain).max() > 1e-3
    command = LatentDataset(tmp_path / "moved").manifest.command
    assert command.endswith("--shift 3")
    assert "--cfg-interval 0.5,1" in LatentDataset(tmp_path / "some").manifest.command
