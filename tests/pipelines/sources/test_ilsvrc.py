"""The devkit: which labels it gives, and damage to it."""

import tarfile
from pathlib import Path

import pytest

from pipelines.images import ImageError
from pipelines.sources.ilsvrc import GROUND_TRUTH, META, Devkit, is_devkit, read_devkit
from schemas.errors import UserError
from tests.pipelines.sources.miniature import Miniature, add, make_devkit
from tests.refusals import refused

SYNSETS = ("n03", "n01", "n02")  # by number, from 1 on
DEVKIT = Devkit("kit", dict(enumerate(SYNSETS, start=1)), truth=(3, 1, 1))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/ILSVRC2012_devkit_t12.tar.gz", True),
        ("gs://bucket/my-devkit.tgz", True),
        ("/devkit/ILSVRC2012_img_train.tar.gz", False),
        ("/data/ILSVRC2012_devkit_t12.tar", False),
    ],
)
def test_a_devkit_is_known_by_the_name_of_the_file(path: str, expected: bool) -> None:
    assert is_devkit(path) == expected


def test_what_is_read_is_what_was_written(miniature: Miniature) -> None:
    devkit = read_devkit(str(miniature.devkit))
    assert devkit.synsets == dict(enumerate(miniature.synsets, start=1)), "leaves alone"
    assert devkit.truth == miniature.truth


def test_a_validation_image_has_the_class_of_its_line() -> None:
    labels = DEVKIT.validation()
    assert labels.classes == ("n01", "n02", "n03")
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 4)]
    assert [labels.classes[labels.label(name)] for name in names] == ["n02", "n03", "n03"]
    for name, told in (
        ("ILSVRC2012_val_00000000.JPEG", "labels of 3 validation images, and this is 0"),
        ("ILSVRC2012_val_00000004.JPEG", "labels of 3 validation images, and this is 4"),
        ("ILSVRC2012_val_1.JPEG", "not named like a validation image"),
        ("sub/ILSVRC2012_val_00000001.JPEG", "not named like a validation image"),
    ):
        with pytest.raises(ImageError, match=told):
            labels.label(name)


def test_training_folders_are_exactly_the_synsets() -> None:
    labels = DEVKIT.training(frozenset(SYNSETS), "train.tar")
    assert labels.label("n02/a.JPEG") == 1
    with pytest.raises(UserError, match=r"^train.tar: lacks n02, n03 \(2 of 3 synsets\)"):
        DEVKIT.training(frozenset({"n01"}), "train.tar")
    with pytest.raises(UserError, match=r"does not know: n04 \(1 of 3 synsets\)"):
        DEVKIT.training(frozenset({*SYNSETS, "n04"}), "train.tar")


def refusal(path: Path) -> str:
    return refused(lambda: read_devkit(str(path)))


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "devkit.tar.gz"
    assert "not a readable devkit" in refusal(path)
    make_devkit(path, SYNSETS, (1, 2, 4))
    assert f"{GROUND_TRUTH} names 4, which is no synset of {META}" in refusal(path)
    make_devkit(path, SYNSETS, (1, 2, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable devkit" in refusal(path)
    for members, told in (
        ({GROUND_TRUTH: b"1\n"}, f"holds no {META}"),
        ({META: b"x"}, f"holds no {GROUND_TRUTH}"),
        ({META: b"x", GROUND_TRUTH: b"1\n"}, "is not the table of synsets it should be"),
    ):
        with tarfile.open(path, "w:gz") as archive:
            for name, data in members.items():
                add(archive, name, data)
        assert told in refusal(path)
