"""What earlier commits wrote opens as it did, under the digests it had.

`written_by_fa4d30e.tar.xz` was made at commit fa4d30e by these commands from 24 small images:

    flowtrain preprocess photos latents --resolution 16 --vae embedded --shards 2 --flips \\
        --min-psnr 0
    flowtrain train latents --workdir run --recipe digits --set model.depth=1 \\
        --set model.width=16 --set model.heads=1 \
      --set train.steps=4 --set train.batch_size=4 --set train.checkpoint_every=2 --set
      preview.every=0
    flowtrain stats photos reference.npz --resolution 16 --protocol embedded
    flowtrain eval run --reference reference.npz --steps 2 --cfg 1 --num-samples 12 \\
        --protocol embedded

The digests below are those that the commands printed or wrote then.
"""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from evaluation.draw.setting import run_digest
from evaluation.protocols import read_protocol
from evaluation.results import read_results
from pipelines.preprocess.settings import read_settings
from schemas.manifest import read_manifest
from schemas.run import read_run
from schemas.sealed import unseal
from schemas.statistics import read_statistics
from schemas.storage.directory import open_directory

ARCHIVE = Path(__file__).parent / "written_by_fa4d30e.tar.xz"
DATASET = "92c3ecb109e736ba7aa042ef1eaa653a4e4fc6eefb4396b89823cd4cfc687a2c"
HALF_MADE = ".work/b4dfc85ad4639655"
RUN = "155780be00f7f5952b3e7092154f6956d402df1611f1e77c082e7e527d9a9346"
SAMPLES = "433cb5e4b3e23d8b1e1646cd9c301752cee5b0e86535f17582aad7901ac0c7e5"
EXTRACTOR = "e4b639f7ded2f0b29a3ee263c9fa2e097d0b4992488b467589f5652b330b2bcf"
DISTANCE = 5.7954767705828925


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_dataset_keeps_its_digest_and_its_text(earlier: Path):
    manifest = read_manifest(earlier / "latents")
    assert manifest.digest() == DATASET
    assert manifest.to_json() == (earlier / "latents" / "manifest.json").read_text()
    again = type(manifest).model_validate(json.loads(manifest.canonical()))
    assert again.digest() == DATASET, "written anew it is the same"


def test_work_that_was_begun_is_found_again(earlier: Path):
    settings = read_settings(open_directory(str(earlier / "latents")))
    assert settings is not None
    assert settings.work == HALF_MADE
    assert settings.model_dump_json(indent=2) + "\n" == unseal(
        (earlier / "latents" / "settings.json").read_bytes()
    )


def test_a_run_is_the_same_run(earlier: Path):
    run = read_run(earlier / "run")
    assert run.dataset.digest == DATASET
    assert run_digest(run) == RUN
    assert run.model_dump_json(indent=2) + "\n" == (earlier / "run" / "run.json").read_text()


def test_samples_and_results_are_found_again(earlier: Path):
    samples = next((earlier / "run" / "samples").iterdir())
    assert read_manifest(samples).digest() == SAMPLES
    (result,) = read_results(earlier / "run")
    assert result.distance == DISTANCE
    assert result.sampling is not None
    assert result.sampling.run == RUN
    line = (earlier / "run" / "results.jsonl").read_text().strip()
    assert json.dumps(result.to_json()) == line


def test_statistics_say_their_protocol(earlier: Path):
    statistics = read_statistics(earlier / "reference.npz")
    protocol = read_protocol(statistics.protocol)
    assert protocol is not None
    assert protocol.extractor_digest == EXTRACTOR


def test_commands_take_them_up(earlier: Path):
    """Training goes on from the checkpoint, and an evaluation that is done is not done again."""

    def output(*words: str) -> str:
        command = [sys.executable, "-c", "from flowtrain.cli import main; main()", *words]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    latents, run = str(earlier / "latents"), str(earlier / "run")
    assert DATASET in output("data", "inspect", latents)
    told = output(
        *("eval", run, "--reference", str(earlier / "reference.npz"), "--protocol", "embedded"),
        *("--steps", "2", "--cfg", "1", "--num-samples", "12", "--json"),
    )
    assert json.loads(told.strip().splitlines()[-1])["fd"] == DISTANCE
    shutil.rmtree(earlier / "run" / "checkpoints" / "4")
    overrides = (
        "model.depth=1 model.width=16 model.heads=1 train.steps=4 train.batch_size=4 "
        "train.checkpoint_every=2"
    )
    words = [
        word for override in f"{overrides} preview.every=0".split() for word in ("--set", override)
    ]
    output("train", latents, "--workdir", run, "--recipe", "digits", *words)
    assert (earlier / "run" / "checkpoints" / "4").is_dir()
    last = (earlier / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 4
