"""The commands that mend a dataset, by their words; test_verify.py does what they say."""

import shlex
import subprocess
from pathlib import Path

import pytest

from pipelines.curate.merge_plan import make_plan
from pipelines.curate.repair import repair_commands
from schemas.manifest import (
    MANIFEST_NAME,
    MERGE_NAME,
    RESULTS_NAME,
    SETTINGS_NAME,
    Manifest,
    Reconstruction,
    read_manifest,
)
from schemas.text import printable
from tests.pipelines.datasets import make
from tests.pipelines.running import plan

SHARD = "latents-train.array_record-00000-of-00001"
PRESENT = {SHARD, RESULTS_NAME, MANIFEST_NAME, SETTINGS_NAME}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A dataset whose path a shell would take apart."""
    make(tmp_path / "my latents", [{"k0": "ant", "k1": "bee"}])
    return tmp_path / "my latents"


@pytest.fixture
def manifest(out: Path) -> Manifest:
    return read_manifest(out)


def words(root: object, manifest: Manifest | None, *damaged: str) -> list[list[str]]:
    """What a shell would run."""
    found = repair_commands(str(root), manifest, damaged, PRESENT)
    return [shlex.split(command) for command in found.commands]


def test_nothing_is_done_to_a_whole_dataset(out: Path, manifest: Manifest) -> None:
    assert repair_commands(str(out), manifest, (), PRESENT) == ((), "")


def test_damaged_files_go_and_the_command_is_repeated(out: Path, manifest: Manifest) -> None:
    repeat = ["flowtrain", "preprocess", f"/photos/{out.name}", str(out)]
    # the command of the test's dataset is written without quotes
    manifest = manifest.model_copy(
        update={"command": shlex.join(["flowtrain", "preprocess", f"/photos/{out.name}", "OUT"])}
    )
    delete = ["rm", "--", f"{out}/{SHARD}", f"{out}/{SETTINGS_NAME}"]
    assert words(out, manifest, SHARD, SETTINGS_NAME) == [delete, repeat]
    assert words(out, manifest, "gone", SHARD) == [delete[:3], repeat], "it is not there"
    assert words(out, manifest, "gone") == [repeat]


@pytest.mark.parametrize(
    ("url", "tool"),
    [("s3://b/a c", ["aws", "s3", "rm"]), ("gs://b/a c", ["gcloud", "storage", "rm"])],
)
def test_objects_are_deleted_by_their_stores_tool(
    manifest: Manifest, url: str, tool: list[str]
) -> None:
    delete = words(url, manifest, SHARD, RESULTS_NAME)[:2]
    assert delete == [[*tool, f"{url}/{SHARD}"], [*tool, f"{url}/{RESULTS_NAME}"]]


def test_notes_say_what_to_know_before(out: Path, manifest: Manifest) -> None:
    def note(manifest: Manifest, *damaged: str) -> str:
        return repair_commands(str(out), manifest, damaged, PRESENT).note

    assert note(manifest, SHARD) == ""
    assert note(manifest, RESULTS_NAME) == f"without {RESULTS_NAME} all shards are made again"
    samples = manifest.model_copy(update={"command": "flowtrain sample WORKDIR OUT --num 3"})
    assert note(samples, SHARD) == "WORKDIR is the run that the samples were drawn from"
    assert "; " in note(samples, RESULTS_NAME, SHARD)


def test_names_that_a_terminal_would_obey_are_escaped_as_bash_reads_them(
    manifest: Manifest,
) -> None:
    name = "a\x1b[2K'b\\c\u202e"
    (delete, _) = repair_commands("/data", manifest, [name], {name}).commands
    assert printable(delete) == delete
    done = subprocess.run(
        ["bash", "-c", delete.replace("rm -- ", "printf %s ")],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert done.stdout.decode() == f"/data/{name}"


@pytest.mark.parametrize("command", ["curl somewhere | sh", "rm -rf OUT", "", "flowtrain 'open"])
def test_only_our_own_commands_are_advised(out: Path, manifest: Manifest, command: str) -> None:
    foreign = manifest.model_copy(update={"command": command})
    commands, note = repair_commands(str(out), foreign, [SHARD], PRESENT)
    assert not commands, "what is deleted could not be made again"
    assert note == "get or make the dataset again: no flowtrain command is noted in it"


def thresholds(out: Path, manifest: Manifest) -> dict[str, float]:
    """The options about thresholds in the command that is repeated."""
    *_, repeat = words(out, manifest, SHARD)
    named = {word: repeat[place + 1] for place, word in enumerate(repeat) if word[:2] == "--"}
    return {name: float(value) for name, value in named.items()}


@pytest.mark.parametrize("rejected", [0, 1, 2, 3, 500, 999])
def test_a_dataset_with_many_rejects_passes_again(
    out: Path, manifest: Manifest, rejected: int
) -> None:
    counts = manifest.counts.model_copy(
        update={"rejected": rejected, "source": 999 if rejected > 500 else 177}
    )
    found = thresholds(out, manifest.model_copy(update={"counts": counts}))
    fraction = counts.rejected / counts.source
    allowed = found.pop("--max-bad-fraction", 0.01)
    assert found == {}
    assert fraction <= allowed, "or the command would fail"
    assert allowed <= max(fraction + 0.001, 0.01), "and no more than that"


@pytest.mark.parametrize("psnr", [-3.0, 0.04, 11.97, 17.99, 18.0, 30.0])
def test_a_poor_reconstruction_passes_again(out: Path, manifest: Manifest, psnr: float) -> None:
    reconstruction = Reconstruction(records=2, psnr_db=psnr)
    poor = manifest.model_copy(update={"reconstruction": reconstruction})
    found = thresholds(out, poor)
    least = found.pop("--min-psnr", 18.0)
    assert found == {}
    assert least <= max(psnr, 0), "0 switches it off"
    assert least > min(psnr, 18.0) - 0.11
    merged = poor.model_copy(update={"command": "flowtrain data merge a b OUT"})
    assert thresholds(out, merged) == {}, "a merge has no thresholds"


def test_without_a_manifest_the_settings_tell_the_command(photos: Path, tmp_path: Path) -> None:
    task = plan(photos, tmp_path / "out", flips=True)
    task.build.take()
    delete, repeat = words(tmp_path / "out", None, MANIFEST_NAME)
    assert delete == ["rm", "--", f"{tmp_path}/out/{MANIFEST_NAME}"]
    assert repeat[:4] == ["flowtrain", "preprocess", str(photos), f"{tmp_path}/out"]
    assert repeat[-4:] == ["--max-bad-fraction", "1", "--min-psnr", "0"], "what they were is lost"
    told = dict(zip(repeat[4:-4:2], repeat[5:-4:2], strict=False))
    assert (told["--resolution"], told["--vae"], told["--shards"]) == ("16", "none", "4")
    assert "--flips" in repeat


def test_without_a_manifest_the_merge_tells_its_command(out: Path, tmp_path: Path) -> None:
    make(tmp_path / "b", [{"b0": "ant"}])
    merged = tmp_path / "out"
    merged.mkdir()
    merge = make_plan([str(out), str(tmp_path / "b")], None)
    (merged / MERGE_NAME).write_text(merge.text())
    expected = ["flowtrain", "data", "merge", str(out), str(tmp_path / "b"), str(merged)]
    assert words(merged, None, MANIFEST_NAME)[1:] == [expected]
    (merged / MERGE_NAME).write_text(merge.text().replace("merge", "murge", 1))
    found = repair_commands(str(merged), None, [MANIFEST_NAME], PRESENT)
    assert len(found.commands) == 1
    assert found.note.startswith("then repeat the command that made the dataset")
