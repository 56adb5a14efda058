"""Every n-th image by name goes into the second tar, and nothing else changes."""

import io
import tarfile
from pathlib import Path

from click.testing import CliRunner

from examples.split_tar import main, split_tar


def write(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("bee")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_each_class_gives_up_the_same_share(tmp_path: Path):
    content = {
        f"{name}/{i:02d}.jpg": f"{name}{i}".encode() for i in range(20) for name in ("bee", "ant")
    }
    source = write(tmp_path / "all.tar", content)
    assert split_tar(source, tmp_path / "kept.tar", tmp_path / "held_out.tar", 10) == (36, 4)
    kept, held_out = read(tmp_path / "kept.tar"), read(tmp_path / "held_out.tar")
    assert list(held_out) == ["ant/09.jpg", "ant/19.jpg", "bee/09.jpg", "bee/19.jpg"]
    assert {**kept, **held_out} == content
    assert not kept.keys() & held_out.keys()


def test_nothing_is_replaced_and_nothing_half_is_left(tmp_path: Path):
    source = write(tmp_path / "all.tar", {f"{i}.jpg": bytes(2000) for i in range(20)})
    before = source.read_bytes()
    for words in (
        ["all.tar", "all.tar", "b.tar"],
        ["all.tar", "b.tar", "b.tar"],
        ["all.tar", "b.tar", "all.tar"],
    ):
        told = CliRunner().invoke(main, [str(tmp_path / word) for word in words])
        assert told.exit_code == 2
        assert source.read_bytes() == before
    source.write_bytes(before[: len(before) // 2 + 100])
    told = CliRunner().invoke(
        main, [str(tmp_path / word) for word in ("all.tar", "b.tar", "c.tar")]
    )
    assert told.exit_code == 1
    assert "cannot be split" in told.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tar"]
