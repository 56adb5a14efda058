"""What a person meets: mistakes told in one line, plans, JSON, and nothing written where nothing
should be.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import CROP_RULES
from pipelines.images import CROPS
from schemas.manifest import MANIFEST_NAME, read_manifest
from tests.pipelines.conftest import IMAGES
from tests.pipelines.running import contents, run
from tests.pipelines.sources.miniature import png

SMALL = ("--resolution", 16, "--shards", 3, "--batch-size", 8)


def refused(*arguments: object) -> str:
    """Run a command that must fail as a user's mistake; returns its one line."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_missing_folder(tmp_path: Path, out: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere", out, "--vae", "none")
    assert not out.exists()


def test_empty_folder(tmp_path: Path, out: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "no image file in it" in refused(tmp_path / "in", out, "--vae", "none")
    assert not out.exists()


def test_folder_without_a_readable_image(tmp_path: Path, out: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_text("text")
    (tmp_path / "in/b.jpg").touch()
    assert "none of its 2 images can be used" in refused(tmp_path / "in", out, "--vae", "none")
    assert not out.exists()


def test_unknown_source_names_the_known(out: Path) -> None:
    line = refused("rar:a.rar", out)
    assert "unknown kind of source 'rar:'" in line
    assert "tar:" in line
    assert not out.exists()


@pytest.mark.parametrize(
    "break_it", ["missing", "no config", "no weights", "other class", "truncated weights"]
)
def test_wrong_vae_directory(
    photos: Path, tiny_vae: Path, tmp_path: Path, out: Path, break_it: str
) -> None:
    vae = tmp_path / "vae"
    if break_it != "missing":
        shutil.copytree(tiny_vae, vae)
    match break_it:
        case "no config":
            (vae / "config.json").unlink()
        case "no weights":
            next(vae.glob("*.safetensors")).unlink()
        case "other class":
            (vae / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        case "truncated weights":
            weights = next(vae.glob("*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:1000])
    line = refused(photos, out, *SMALL, "--vae", vae)
    assert str(vae) in line or "config.json" in line
    assert not out.exists()


def test_resolution_that_the_vae_cannot_divide(photos: Path, tiny_vae: Path, out: Path) -> None:
    line = refused(photos, out, "--vae", tiny_vae, "--resolution", 17)
    assert "--resolution 17 is not divisible by 2" in line
    assert "take 16 or 18" in line
    assert not out.exists()


@pytest.mark.parametrize("split", ["a/b", "a-b", "../x", "train[:10]"])
def test_split_that_is_no_name(photos: Path, out: Path, split: str) -> None:
    assert "letters, digits and underscores only" in refused(
        photos, out, "--vae", "none", "--split", split
    )
    assert not out.exists()


def test_more_shards_than_images(photos: Path, out: Path) -> None:
    assert "--shards 61 is more than the 60 images" in refused(
        photos, out, "--vae", "none", "--shards", 61
    )
    assert not out.exists()


def test_directory_of_something_else(photos: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(photos, out, *SMALL, "--vae", "none")
    assert contents(out) == {"thesis.tex": b"years of work"}


def test_out_is_a_file(photos: Path, out: Path) -> None:
    out.write_text("x")
    assert "is a file" in refused(photos, out, *SMALL, "--vae", "none")
    assert out.read_text() == "x"


def test_output_to_another_file_system(photos: Path) -> None:
    line = refused(photos, "hdfs://host/out", *SMALL, "--vae", "none")
    assert "no such kind of storage; known are local paths, s3:// and gs://" in line


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--seed", 1), "seed: 0 -> 1"),
        (("--crop", "none"), "crop: adm -> none"),
        (("--flips",), "flips: False -> True"),
        (("--split", "test"), "source.split: train -> test"),
        (("--batch-size", 4), "batch_size: 8 -> 4"),
        (("--shards", 4), "shards: 3 -> 4"),
    ],
)
def test_directory_of_another_configuration(
    photos: Path, out: Path, change: tuple[object, ...], difference: str, finished: bool
) -> None:
    assert run(photos, out, *SMALL, "--vae", "none").exit_code == 0
    if not finished:
        (out / MANIFEST_NAME).unlink()
    before = contents(out)
    line = refused(photos, out, *SMALL, "--vae", "none", *change)
    assert difference in line
    assert ("finished" if finished else "half-made") in line
    assert contents(out) == before


def test_changed_source_is_another_configuration(photos: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(photos, tmp_path / "in")
    assert run(tmp_path / "in", out, *SMALL, "--vae", "none").exit_code == 0
    shutil.copy(tmp_path / "in/ant/000.png", tmp_path / "in/bee/000.png")
    line = refused(tmp_path / "in", out, *SMALL, "--vae", "none")
    assert "has changed since" in line
    assert f"listed {IMAGES} images then and lists {IMAGES + 1} now" in line


def test_directory_within_the_source_would_be_part_of_it(photos: Path) -> None:
    before = contents(photos)
    assert "choose a directory outside" in refused(
        photos, photos / "latents", *SMALL, "--vae", "none"
    )
    assert contents(photos) == before


@pytest.mark.parametrize("empty", [0, 1])
def test_variable_that_is_not_set(photos: Path, out: Path, empty: int) -> None:
    places = [photos, out]
    places[empty] = ""  # type: ignore[call-overload]
    assert "is empty; give a value" in refused(*places, *SMALL, "--vae", "none")


@pytest.mark.parametrize("finished", [True, False])
def test_image_replaced_by_one_of_the_same_size_is_noticed(
    photos: Path, tmp_path: Path, out: Path, finished: bool
) -> None:
    shutil.copytree(photos, tmp_path / "in")
    assert run(tmp_path / "in", out, *SMALL, "--vae", "none").exit_code == 0
    if not finished:
        (out / MANIFEST_NAME).unlink()
    before = contents(out)
    victim = tmp_path / "in/ant/003.bmp"
    kept, time = victim.read_bytes(), victim.stat()
    victim.write_bytes(kept[:-50] + bytes(50))
    assert "the modification times or places are not" in refused(
        tmp_path / "in", out, *SMALL, "--vae", "none"
    )
    assert contents(out) == before
    victim.write_bytes(kept)
    os.utime(victim, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert run(tmp_path / "in", out, *SMALL, "--vae", "none").exit_code == 0


def test_manifest_does_not_depend_on_when_the_images_were_copied(
    photos: Path, tmp_path: Path
) -> None:
    """The digest of a dataset is that of the same command on another machine."""
    manifests = []
    for time in (1, 2):
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        shutil.copytree(photos, tmp_path / "in")
        for path in (tmp_path / "in").rglob("*.*"):
            os.utime(path, (time, time))
        assert run(tmp_path / "in", tmp_path / str(time), *SMALL, "--vae", "none").exit_code == 0
        manifests.append((tmp_path / str(time) / MANIFEST_NAME).read_bytes())
    assert manifests[0] == manifests[1]


def test_manifest_of_a_future_version(photos: Path, out: Path) -> None:
    assert run(photos, out, *SMALL, "--vae", "none").exit_code == 0
    path = out / MANIFEST_NAME
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    before = contents(out)
    assert "schema version 99 is newer" in refused(photos, out, *SMALL, "--vae", "none")
    assert contents(out) == before


def test_too_many_bad_images_then_a_larger_limit(photos: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(photos, tmp_path / "in")
    for number in range(4):
        (tmp_path / f"in/ant/bad{number}.jpg").write_text("text")
    line = refused(tmp_path / "in", out, *SMALL, "--vae", "none")
    assert "4 of 64 images were rejected" in line
    assert "repeat with --max-bad-fraction 0.063" in line
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 4
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record*")}
    assert len(kept) == 3
    assert (
        run(tmp_path / "in", out, *SMALL, "--vae", "none", "--max-bad-fraction", 0.063).exit_code
        == 0
    )
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record*")} == kept
    # still too many
    assert "--max-bad-fraction" in refused(tmp_path / "in", out, *SMALL, "--vae", "none")


def test_poor_reconstruction(photos: Path, tiny_vae: Path, out: Path) -> None:
    line = refused(photos, out, *SMALL, "--vae", tiny_vae)
    assert "below --min-psnr 18" in line
    assert not (out / MANIFEST_NAME).exists()
    assert run(photos, out, *SMALL, "--vae", tiny_vae, "--min-psnr", 0).exit_code == 0


@pytest.mark.parametrize("option", ["--foo=bar", "--direct_num_workers=x", "--runner=Nobody"])
def test_unknown_beam_options(photos: Path, out: Path, option: str) -> None:
    assert "Beam" in refused(photos, out, *SMALL, "--vae", "none", "--", option)
    assert not out.exists()


def test_json_result(photos: Path, out: Path) -> None:
    for state in ("written", "was finished already"):
        result = run(photos, out, *SMALL, "--vae", "none", "--json")
        assert result.exit_code == 0
        facts = json.loads(result.stdout)
        assert facts["state"] == state
        assert (facts["records"], facts["rejected"], facts["shape"]) == (IMAGES, 0, [16, 16, 3])


def test_dry_run_writes_nothing(photos: Path, tiny_vae: Path, out: Path) -> None:
    result = run(photos, out, *SMALL, "--vae", tiny_vae, "--flips", "--dry-run", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert (facts["images"], facts["classes"], facts["shards"], facts["state"]) == (
        IMAGES,
        3,
        3,
        "new",
    )
    # splits, moments, latent, bytes of a float16
    assert facts["bytes"] == IMAGES * 2 * 2 * 8 * 8 * 4 * 2
    assert facts["flops_per_image"] > 1e6
    assert not out.exists()
    text = run(photos, out, *SMALL, "--vae", tiny_vae, "--dry-run").stdout
    assert "flops per image" in text
    assert not out.exists()


def test_crop_rules_of_the_command_are_those_of_the_code() -> None:
    assert set(CROP_RULES) == CROPS.keys()


def test_a_class_without_a_record_is_told(photos: Path, tmp_path: Path, out: Path) -> None:
    """One whose only image is broken, and one whose folder is empty: nothing will train them."""
    shutil.copytree(photos, tmp_path / "in")
    for name in ("aaa", "zzz"):
        (tmp_path / "in" / name).mkdir()
    (tmp_path / "in/aaa/broken.png").touch()
    settings = (*SMALL, "--vae", "none", "--max-bad-fraction", 0.2)
    result = run(tmp_path / "in", out, *settings)
    assert result.exit_code == 0, result.output
    told = "2 classes have no image (aaa, zzz): samples are drawn of it only with --class"
    assert f"Warning: {told}" in result.stderr
    assert read_manifest(out).empty_classes == (0, 4)
    whole = run(photos, tmp_path / "whole", *SMALL, "--vae", "none")
    assert "no image" not in whole.stderr
    assert "empty_classes" not in (tmp_path / "whole" / MANIFEST_NAME).read_text()


def test_folders_that_look_like_no_classes_are_told_of(tmp_path: Path, out: Path) -> None:
    for number in range(4):
        path = tmp_path / f"in/{number % 2:05d}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    options = ("--vae", "none", "--resolution", 4, "--dry-run", "--json")
    told = run(tmp_path / "in", out, *options)
    assert json.loads(told.stdout)["classes"] == 2
    (line,) = told.stderr.splitlines()
    assert line.startswith("Note: the classes are folders called 00000, 00001: ")
    quiet = run(tmp_path / "in", out, *options, "--classes", "none")
    assert json.loads(quiet.stdout)["classes"] == 1
    assert quiet.stderr == ""


def test_enlarged_images_are_told_or_left_out(photos: Path, tmp_path: Path, out: Path) -> None:
    """Sides are from 18 pixels on: of 24, some are enlarged."""
    small = 0
    for path in photos.rglob("*.*"):
        with Image.open(path) as image:
            small += min(image.size) < 21
    assert 0 < small < IMAGES
    settings = ("--resolution", 21, "--vae", "none", "--max-bad-fraction", 1)
    result = run(photos, out, *settings)
    told = f"Warning: {small} of {IMAGES} images are smaller than 21 pixels and were enlarged"
    assert told in result.stderr
    assert read_manifest(out).counts.enlarged == small
    result = run(photos, tmp_path / "large", *settings, "--min-side", 21)
    assert "enlarged" not in result.stderr
    counts = read_manifest(tmp_path / "large").counts
    assert (counts.rejected, counts.enlarged) == (small, 0)
    assert read_manifest(tmp_path / "large").source.descriptor == f"{photos}#min_side=21"
