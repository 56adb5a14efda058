"""The dataset card: what the Hugging Face hub reads, and what a person does."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from pipelines.dataset.card import CARD_NAME, dataset_card, size_category
from pipelines.dataset.finished import LatentDataset
from pipelines.preprocess.pipeline import preprocess
from schemas.manifest import Manifest
from tests.pipelines.datasets import VAE, make
from tests.pipelines.running import plan

# What the hub's documentation of dataset cards names: huggingface.co/docs/hub/datasets-cards
SIZES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B".split()
SIZES += "1B<n<10B 10B<n<100B 100B<n<1T n>1T".split()
FIELDS = {"pretty_name", "license", "task_categories", "size_categories", "tags", "viewer"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(
        tmp_path_factory.mktemp("card") / "photos",
        [{"a": "ant"}, {"b": "bee"}],
        flips=True,
        rejects=["c"],
    )


def test_the_hub_reads_its_metadata(manifest: Manifest) -> None:
    card = DatasetCard(dataset_card(manifest))
    data = card.data.to_dict()
    assert data.keys() == FIELDS
    assert data["pretty_name"] == "photos, train, 8 px, latents"
    assert data["task_categories"] == ["image-classification"]
    assert data["license"] == "other"
    assert data["size_categories"] == ["n<1K"]
    assert data["viewer"] is False
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in data["tags"])
    assert card.text.lstrip().startswith("# photos, train, 8 px, latents")
    assert yaml.safe_load(dataset_card(manifest).split("---\n")[1]) == data


@pytest.mark.parametrize(
    ("records", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M")]
)
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
    assert manifest.reconstruction is not None
    assert manifest.vae is not None
    for told in (
        "2 in train and as many in train_flip",
        "2 written, 1 rejected (33%), 0 duplicate",
        "mean (2, 2, 4) float16, logvar (2, 2, 4) float16",
        "z = (raw - 0.0) * 0.5",
        f"{manifest.reconstruction.psnr_db:.2f} dB",
        f"sha256 {manifest.vae.sha256}",
        "| source | photos, split train |",
        "flowtrain preprocess photos OUT",
        "pip install flowtrain",
        "| 1 | bee |",
        f"| 3 | {manifest.channels.mean[3]:.6g} | {manifest.channels.std[3]:.6g} |",
    ):
        assert told in text


def test_the_first_classes_are_named(manifest: Manifest) -> None:
    many = manifest.model_copy(
        update={"classes": tuple(f"<b>|*{number}" for number in range(1000))}
    )
    text = dataset_card(many)
    assert "The first 20 of 1,000. Line n of `label.labels.txt`" in text
    assert "| 19 | \\<b\\>\\|\\*19 |" in text
    assert "| 20 |" not in text
    alone = dataset_card(manifest.model_copy(update={"classes": ("all",)}))
    assert "## Classes" not in alone
    assert DatasetCard(alone).data.to_dict()["task_categories"] == [
        "unconditional-image-generation"
    ]


@pytest.mark.parametrize(
    ("descriptor", "told"),
    [
        ("/home/me/photos/", "photos"),
        ("tar:/home/me/train.tar", "tar:train.tar"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        ("tfds:s3://bucket/set/1.0.0", "tfds:s3://bucket/set/1.0.0"),
        ("embedded:digits", "embedded:digits"),
    ],
)
def test_folders_of_the_maker_are_left_out(manifest: Manifest, descriptor: str, told: str) -> None:
    source = manifest.source.model_copy(update={"descriptor": descriptor})
    vae = VAE.model_copy(update={"id": "/home/me/vae"})
    command = f"flowtrain preprocess {descriptor} OUT --vae /home/me/vae"
    text = dataset_card(
        manifest.model_copy(update={"source": source, "vae": vae, "command": command})
    )
    assert f"| source | {told}, split train |" in text
    assert f"flowtrain preprocess {told} OUT --vae vae\n" in text
    assert "| VAE | vae, computed" in text
    assert "/home" not in text


def test_its_code_opens_the_dataset(photos: Path, tmp_path: Path) -> None:
    """Written by `preprocess`, the same wherever the dataset lies; the snippet runs as it
    stands.
    """
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
    whole = shlex.split(LatentDataset(tmp_path / "one").manifest.command)
    assert shlex.split(commands[-1]) == [
        photos.name if word == str(photos) else word for word in whole
    ]
    assert str(photos) not in texts[0]


def test_names_of_others_are_no_markdown(manifest: Manifest) -> None:
    name = "a*b*`c`<img src=x>[d](e)_```"
    source = manifest.source.model_copy(update={"descriptor": name, "split": "<i>"})
    command = f"flowtrain preprocess {shlex.quote(name)} OUT"
    text = dataset_card(manifest.model_copy(update={"source": source, "command": command}))
    escaped = r"a\*b\*\`c\`\<img src=x\>\[d\](e)\_\`\`\`"
    assert f"| source | {escaped}, split \\<i\\> |" in text
    assert f"\n# {escaped}, " in text
    assert f"\n````sh\nflowtrain preprocess {shlex.quote(name)} OUT\n````\n" in text
