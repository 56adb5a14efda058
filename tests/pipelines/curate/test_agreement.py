"""Files that are whole and contradict the manifest."""

import hashlib
from pathlib import Path

import pytest

from pipelines.curate.verify import verify
from schemas.manifest import write_manifest
from tests.pipelines.datasets import make


def test_the_shards_add_up_to_the_records_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{"k0": "ant", "k1": "bee"}])
    counts = manifest.counts.model_copy(update={"written": 3, "source": 3})
    write_manifest(out, manifest.model_copy(update={"counts": counts}))
    (damage,) = verify(str(out)).damaged
    assert "do not add up" in damage.problem


@pytest.mark.parametrize(
    "changes",
    [
        {"features.json": '"numClasses": "2"->"numClasses": "3"'},
        {"dataset_info.json": '"2"->"3"'},
        {"label.labels.txt": "bee->bees"},
        {"rejects.jsonl": "->{}\n"},
    ],
)
def test_files_for_tensorflow_datasets_agree_with_the_manifest(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    out = tmp_path / "out"
    manifest = make(out, [{"k0": "ant", "k1": "bee"}])
    ((name, change),) = changes.items()
    old, new = change.split("->")
    text = (out / name).read_text()
    (out / name).write_text(text.replace(old, new) if old else text + new)
    data = (out / name).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    entries = tuple(
        info.model_copy(update={"bytes": len(data), "sha256": sha256})
        if info.name == name
        else info
        for info in manifest.files
    )
    write_manifest(out, manifest.model_copy(update={"files": entries}))
    assert [(damage.file, damage.problem) for damage in verify(str(out)).damaged] == [
        (name, "does not agree with the manifest")
    ]
