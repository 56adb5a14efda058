import gzip
import io
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.images import ImageError, decode_image
from pipelines.sources import Item, Source, open_source
from schemas.errors import UserError
from tests.pipelines.sources.miniature import IMAGES, SYNSETS, Miniature, add, png
from tests.refusals import refused


def content_of(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def index(source: Source) -> dict[str, Item]:
    items = list(source.index())
    assert len({item.key for item in items}) == len(items)
    return {item.key: item for item in items}


def opened(*paths: Path) -> Source:
    return open_source("tar:" + ",".join(map(str, paths)), "train")


def refusal(path: Path) -> str:
    return refused(lambda: list(opened(path).index()))


def plain_tar(path: Path, *names: str, **fields: object) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            add(archive, name, png(), **fields)
    return path


def test_training_tar_equals_the_extracted_folder(miniature: Miniature) -> None:
    tar, folder = opened(miniature.train), open_source(str(miniature.folder), "train")
    assert tar.classes == folder.classes == tuple(sorted(miniature.synsets))
    found, expected = index(tar), index(folder)
    assert len(found) == SYNSETS * IMAGES
    for key, item in expected.items():
        assert (found[key].label, found[key].size) == (item.label, item.size)
        np.testing.assert_array_equal(tar.read(found[key]).pixels, folder.read(item).pixels)


def test_any_member_equals_what_tar_extracts(miniature: Miniature, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    subprocess.run(["tar", "xf", miniature.train, "-C", tmp_path], check=True)
    source = opened(miniature.train)
    for name in miniature.synsets[:3]:
        (tmp_path / name).mkdir()
        subprocess.run(["tar", "xf", tmp_path / f"{name}.tar", "-C", tmp_path / name], check=True)
        for key, item in index(source).items():
            if key.startswith(name):
                np.testing.assert_array_equal(
                    source.read(item).pixels, decode_image((tmp_path / key).read_bytes())
                )


def test_nothing_is_extracted_and_a_copy_is_small(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = opened(miniature.train)
    item = next(source.index())
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(item).pixels, source.read(item).pixels)
    assert len(pickle.dumps(source)) < 1000
    assert list(tmp_path.iterdir()) == []


def test_devkit_labels_the_validation_images(miniature: Miniature) -> None:
    source = opened(miniature.validation, miniature.devkit)
    assert source.classes == tuple(sorted(miniature.synsets))
    items = index(source)
    for number, synset in enumerate(miniature.truth, 1):
        item = items[f"ILSVRC2012_val_{number:08d}.JPEG"]
        assert source.classes[item.label] == miniature.synsets[synset - 1]
    assert len(items) == len(miniature.truth)


def test_without_the_devkit_validation_images_are_one_class(miniature: Miniature) -> None:
    source = opened(miniature.validation)
    assert source.classes == ("all",)
    assert {item.label for item in source.index()} == {0}


def test_training_synsets_are_checked_against_the_devkit(
    miniature: Miniature, tmp_path: Path
) -> None:
    both = opened(miniature.train, miniature.devkit)
    assert both.classes == opened(miniature.train).classes
    assert len(index(both)) == SYNSETS * IMAGES
    gone = sorted(miniature.synsets)[4]
    with tarfile.open(miniature.train) as whole, tarfile.open(tmp_path / "part.tar", "w") as part:
        for member in whole:
            name = member.name if member.name != f"{gone}.tar" else "n99999999.tar"
            add(part, name, content_of(whole, member))
    message = refusal_of(tmp_path / "part.tar", miniature.devkit)
    assert f"lacks {gone} (1 of {SYNSETS} synsets)" in message
    with tarfile.open(tmp_path / "part.tar", "a") as part, tarfile.open(miniature.train) as whole:
        add(part, f"{gone}.tar", content_of(whole, f"{gone}.tar"))
    assert "does not know: n99999999 (1 of" in refusal_of(tmp_path / "part.tar", miniature.devkit)


def refusal_of(*paths: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(opened(*paths).index())
    return str(caught.value)


def test_validation_image_without_a_label_is_rejected(miniature: Miniature, tmp_path: Path) -> None:
    path = plain_tar(
        tmp_path / "val.tar",
        "ILSVRC2012_val_00000031.JPEG",
        "cat.JPEG",
        "ILSVRC2012_val_00000001.JPEG",
    )
    source = opened(path, miniature.devkit)
    items = index(source)
    assert items["ILSVRC2012_val_00000001.JPEG"].label >= 0
    for name, reason in (
        ("ILSVRC2012_val_00000031.JPEG", "labels of 30"),
        ("cat.JPEG", "not named like"),
    ):
        with pytest.raises(ImageError, match=reason):
            source.read(items[name])


@pytest.mark.parametrize("damage", ["cut", "no table", "no member", "text", "unknown synset"])
def test_damaged_devkit_is_named(damage: str, miniature: Miniature, tmp_path: Path) -> None:
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(miniature.devkit) as whole:
        contents = {member.name: content_of(whole, member) for member in whole}
    meta, truth = (
        next(name for name in contents if name.endswith(end)) for end in ("meta.mat", "truth.txt")
    )
    if damage == "no member":
        del contents[truth]
    contents[meta] = b"?" * 500 if damage == "no table" else contents[meta]
    if damage in ("text", "unknown synset"):
        contents[truth] = b"1\ncat\n" if damage == "text" else b"1\n77\n"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            add(archive, name, data)
    if damage == "cut":
        path.write_bytes(miniature.devkit.read_bytes()[:-400])
    assert str(path) in refusal_of(miniature.validation, path)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(kind: int, tmp_path: Path) -> None:
    names = (f"cat/{'long' * 60}.png", "żółw/日本.png", "cat/" + "x" * 99 + ".png")
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        for name in names:
            add(archive, name, png("blue"))
    source = opened(tmp_path / "x.tar")
    assert source.classes == ("cat", "żółw")
    items = index(source)
    assert items.keys() == set(names)
    assert all((source.read(item).pixels == (0, 0, 255)).all() for item in items.values())


def test_dots_slashes_hidden_members_and_folders_around_everything(tmp_path: Path) -> None:
    path = plain_tar(
        tmp_path / "x.tar",
        "./data/train//cat/1.png",
        "./data/train/dog/2.png",
        "./data/train/dog/._2.png",
        "./x.txt",
    )
    source = opened(path)
    assert source.classes == ("cat", "dog")
    assert index(source).keys() == {"cat/1.png", "dog/2.png"}


def test_members_that_cannot_be_images_are_rejected_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "cat/good.png", png())
        add(archive, "../evil.png", png())
        add(archive, "/etc/evil.png", png())
        add(archive, "cat/../../evil.png", png())
        add(archive, "cat/link.png", b"", type=tarfile.SYMTYPE, linkname="good.png")
        add(archive, "cat/hard.png", b"", type=tarfile.LNKTYPE, linkname="cat/good.png")
        add(archive, "cat/pipe.png", b"", type=tarfile.FIFOTYPE)
        add(archive, "cat/device.png", b"", type=tarfile.BLKTYPE)
        add(archive, "cat/photo.tiff", png())
        add(archive, "empty", b"", type=tarfile.DIRTYPE)
    source = opened(path)
    assert source.classes == ("cat", "empty")
    reasons = {}
    for key, item in index(source).items():
        try:
            source.read(item)
        except ImageError as error:
            reasons[key] = error.reason
    assert reasons == {
        "../evil.png": "its name leads out of the archive",
        "/etc/evil.png": "its name leads out of the archive",
        "cat/../../evil.png": "its name leads out of the archive",
        "cat/link.png": "a symbolic link, not a file",
        "cat/hard.png": "a link to another member, not a file",
        "cat/pipe.png": "a pipe, not a file",
        "cat/device.png": "a device, not a file",
        "empty/": "a class folder with no image in it",
    }


def test_sparse_member_is_rejected_and_its_neighbours_are_read(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    folder = tmp_path / "cat"
    folder.mkdir()
    with open(folder / "b.png", "wb") as file:
        file.write(png())
        file.seek(1 << 20)
        file.write(b"x")
    for name in ("a", "c"):
        (folder / f"{name}.png").write_bytes(png())
    for kind in ("gnu", "posix"):
        command = ["tar", "cSf", tmp_path / "x.tar", f"--format={kind}", "--sort=name", "cat"]
        subprocess.run(command, cwd=tmp_path, check=True)
        source = opened(tmp_path / "x.tar")
        items = index(source)
        assert items.keys() == {"cat/a.png", "cat/b.png", "cat/c.png"}
        assert source.read(items["cat/c.png"]).pixels.shape == (4, 4, 3)
        with pytest.raises(ImageError, match="sparse"):
            source.read(items["cat/b.png"])


def test_cut_inner_tar_is_named(miniature: Miniature, tmp_path: Path) -> None:
    with tarfile.open(miniature.train) as whole, tarfile.open(tmp_path / "x.tar", "w") as copy:
        for number, member in enumerate(whole):
            data = content_of(whole, member)
            add(copy, member.name, data if number != 7 else data[:1536])
    message = refusal(tmp_path / "x.tar")
    assert f"{sorted(miniature.synsets)[7]}.tar in {tmp_path / 'x.tar'}: cut short" in message


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    one, other = (
        plain_tar(tmp_path / "a.tar", "cat/1.png"),
        plain_tar(tmp_path / "b.tar", "dog/2.png"),
    )
    (tmp_path / "x.tar").write_bytes(one.read_bytes() + other.read_bytes())
    assert "give them one by one" in refusal(tmp_path / "x.tar")
    both = opened(one, other)
    assert both.classes == ("cat", "dog")
    assert index(both).keys() == {"cat/1.png", "dog/2.png"}


def test_what_is_no_tar_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    packed = gzip.compress(plain_tar(tmp_path / "y.tar", "cat/1.png").read_bytes())
    for data, reason in (
        (b"", "an empty file"),
        (os.urandom(5000), "not a tar"),
        (b"text", "not a tar"),
        (packed, "unpack it with gunzip"),
        (b"PK\x03\x04" + bytes(600), "give it as zip:FILE"),
    ):
        path.write_bytes(data)
        assert reason in refusal(path)
    with pytest.raises(UserError, match="no such file"):
        opened(tmp_path / "nowhere.tar")
    with pytest.raises(UserError, match="no tar given"):
        open_source("tar:", "train")
    plain_tar(path)
    assert "no image file in it" in refusal(path) or "not a tar" in refusal(path)


def test_archive_that_shrank_is_not_a_bad_image(tmp_path: Path) -> None:
    path = plain_tar(tmp_path / "x.tar", "cat/1.png")
    source = opened(path)
    item = next(source.index())
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(OSError, match="shorter than it was"):
        source.read(item)


def test_tar_within_a_tar_within_a_tar_is_refused(miniature: Miniature, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "all.tar", miniature.train.read_bytes())
    assert "nested once" in refusal(tmp_path / "x.tar")


def test_real_tar_of_50000_images(shared_data: Path) -> None:
    source = opened(shared_data / "cifar10_train.tar")
    counts = np.bincount([item.label for item in source.index()])
    np.testing.assert_array_equal(counts, [5000] * 10)
    assert source.classes[0] == "airplane"
    assert source.read(next(source.index())).pixels.shape == (32, 32, 3)


def test_hard_to_read_inner_bytes_go_through_ranges(miniature: Miniature) -> None:
    source = opened(miniature.train)
    with tarfile.open(miniature.train) as archive:
        inner = content_of(archive, f"{miniature.synsets[0]}.tar")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        member = archive.getmembers()[1]
        expected = decode_image(content_of(archive, member))
    item = index(source)[f"{miniature.synsets[0]}/{member.name}"]
    np.testing.assert_array_equal(source.read(item).pixels, expected)
