"""The dataset card: what the Hugging Face hub reads, and what a person does."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from pipelines.card import CARD_NAME, dataset_card, size_category
from pipelines.dataset import LatentDataset
from pipelines.preprocess import preprocess
from schemas.manifest import Manifest
from tests.pipelines.datasets import make
from tests.pipelines.running import plan

# What the hub's documentation of dataset cards names: huggingface.co/docs/hub/datasets-cards
SIZES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B 1B<n<10B 10B<n<100B 100B<n<1T n>1T".split()
FIELDS = {"pretty_name", "task_categories", "size_categories", "tags", "viewer"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("card") / "photos", [{"a": "ant"}, {"b": "bee"}], flips=True, rejects=["c"])


def test_the_hub_reads_its_metadata(manifest: Manifest) -> None:
    card = DatasetCard(dataset_card(manifest))
    data = card.data.to_dict()
    assert data.keys() == FIELDS
    assert data["pretty_name"] == "photos, train, 8 px, latents"
    assert data["task_categories"] == ["unconditional-image-generation"]
    assert data["size_categories"] == ["n<1K"]
    assert data["viewer"] is False
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in data["tags"])
    assert card.text.lstrip().startswith("# photos, train, 8 px, latents")
    assert yaml.safe_load(dataset_card(manifest).split("---\n")[1]) == data


@pytest.mark.parametrize(("records", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M")])
def test_size_categories(records: int, name: str) -> None:
    assert size_category(records) == name
    assert size_category(10**20) in SIZES
    assert size_category(records) in SIZES


def test_names_from_outside_break_neither_metadata_nor_tables(manifest: Manifest) -> None:
    source = manifest.source.model_copy(update={"descriptor": '/data/a|b: "c"\n---\n# d'})
    text = dataset_card(manifest.model_copy(update={"source": source}))
    assert DatasetCard(text).data.to_dict()["pretty_name"].startswith('a|b: "c"')
    (row,) = (line for line in text.splitlines() if line.startswith("| source |"))
    assert row.count(" | ") == 1


def test_says_what_is_in_the_manifest(manifest: Manifest) -> None:
    text = dataset_card(manifest)
    for told in (
        "2 in train and as many in train_flip",
        "2 written, 1 rejected (33%), 0 duplicate",
        "mean (2, 2, 4) float16, logvar (2, 2, 4) float16",
        "z = (raw - 0.0) * 0.5",
        f"{manifest.reconstruction.psnr_db:.2f} dB" if manifest.reconstruction else "",
        f"sha256 {manifest.vae.sha256}" if manifest.vae else "",
        manifest.command,
        f"| 3 | {manifest.channels.mean[3]:.6g} | {manifest.channels.std[3]:.6g} |",
    ):
        assert told in text


def test_its_code_opens_the_dataset(photos: Path, tmp_path: Path) -> None:
    """Written by `preprocess`, the same wherever the dataset lies; the snippet runs as it stands."""
    texts = []
    for name in ("one", "two"):
        preprocess(plan(photos, tmp_path / name), progress=False)
        texts.append((tmp_path / name / CARD_NAME).read_text())
    assert texts[0] == texts[1]
    assert str(tmp_path / "one") not in texts[0]
    (code,) = re.findall(r"```python\n(.*?)```", texts[0], re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace('"DIR"', repr(str(tmp_path / "one"))), names)
    assert len(names["source"]) == len(LatentDataset(tmp_path / "one"))  # type: ignore[arg-type]
    commands = re.findall(r"```sh\n(.*?)```", texts[0], re.DOTALL)
    assert shlex.split(commands[-1]) == shlex.split(LatentDataset(tmp_path / "one").manifest.command)
