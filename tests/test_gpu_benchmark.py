"""`benchmarks/gpu.py`: parts that end in every way, results that stay, inputs that travel in
pieces.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_parts import inputs, results
from benchmarks.gpu_parts.machine import facts
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.parts import PARTS
from benchmarks.gpu_parts.runner import Runner
from schemas.errors import UserError
from tests.gpu_script import blocker, call

ROOT = Path(__file__).resolve().parent.parent

# Modules of parts that end in different ways; `run` is what `Part.load` asks for.
GOOD = "def run(context):\n    context.emit(value=1.5)\n"
FAILING = "def run(context):\n    context.emit(value=2)\n    raise ValueError('no such thing')\n"
LEAVING = "import os\ndef run(context):\n    context.emit(value=3)\n    os._exit(7)\n"
SLOW = """
import subprocess, sys, time
def run(context):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    context.emit(helper=helper.pid)
    time.sleep(300)
"""
PAUSING = "def run(context):\n    context.emit(value=4)\n    context.unfinished('half way')\n"


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Part]:
    """A part whose module has that text."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )

    def make(text: str) -> Part:
        name = f"part{len(list(tmp_path.glob('*.py')))}"
        (tmp_path / f"{name}.py").write_text(text)
        return Part(name, "of a test", 60, name)

    return make


def run(runner: Runner, part: Part, limit: float = 60) -> results.Attempt:
    return runner.run(part, limit, tiny=True, options={})


def kept(work: Path) -> list[results.Attempt]:
    return json.loads((work / results.JSON_NAME).read_text())["attempts"]


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_fails_is_told_and_passed_over(tmp_path: Path, part: Callable[[str], Part]):
    work, copy = tmp_path / "work", tmp_path / "copy"
    runner = Runner(work, [copy], ["gpu.py", "--work", "w"])
    run(runner, part(GOOD))
    failed = run(runner, part(FAILING))
    left = run(runner, part(LEAVING))
    run(runner, part(GOOD))
    assert failed["status"] == left["status"] == results.FAILED
    assert "ValueError: no such thing" in failed["reason"]
    assert [one["status"] for one in kept(work)] == ["done", "failed", "failed", "done"]
    assert [one["rows"] for one in kept(work)] == [
        [{"value": 1.5}],
        [{"value": 2}],
        [{"value": 3}],
        [{"value": 1.5}],
    ]
    table = (copy / results.TABLE_NAME).read_text()
    assert table == (work / results.TABLE_NAME).read_text()
    assert "ValueError: no such thing" in table
    assert "| 1.5 |" in table
    assert f"commit {facts()['commit']}" in table
    assert "gpu.py --work w" in table


def test_a_part_that_exceeds_its_limit_ends_with_all_that_it_started(
    tmp_path: Path, part: Callable[[str], Part]
):
    runner = Runner(tmp_path / "work", [], ["gpu.py"])
    begin = time.monotonic()
    attempt = run(runner, part(SLOW), limit=10)
    assert 10 <= time.monotonic() - begin < 60
    assert attempt["status"] == results.OVER
    assert "ended after 10 s" in attempt["reason"]
    (row,) = attempt["rows"]
    while is_alive(row["helper"]) and time.monotonic() < begin + 60:
        time.sleep(0.1)  # a killed process takes a moment to end on a busy machine
    assert not is_alive(row["helper"])
    assert run(runner, part(GOOD))["status"] == results.DONE


def test_a_later_call_finds_what_an_earlier_one_left(tmp_path: Path, part: Callable[[str], Part]):
    good, pausing = part(GOOD), part(PAUSING)
    runner = Runner(tmp_path / "work", [], ["gpu.py"])
    run(runner, good)
    attempt = run(runner, pausing)
    assert (attempt["status"], attempt["reason"]) == (results.UNFINISHED, "half way")
    assert attempt["rows"] == [{"value": 4}]
    later = Runner(tmp_path / "work", [], ["gpu.py"])
    assert results.is_done(later.attempts, good.name, tiny=True)
    assert not results.is_done(later.attempts, good.name, tiny=False)
    assert not results.is_done(later.attempts, pausing.name, tiny=True)


def test_a_call_that_is_killed_leaves_the_rows_of_its_part(
    tmp_path: Path, part: Callable[[str], Part]
):
    """Its process ends with it, and the next call tells what was measured."""
    slow, work = part(SLOW), tmp_path / "work"
    code = "from pathlib import Path; from benchmarks.gpu_parts.runner import Runner; "
    code += "from benchmarks.gpu_parts.part import Part; "
    code += f"part = Part('slow', '', 60, {slow.module!r}); "
    code += f"Runner(Path({str(work)!r}), [], ['gpu.py']).run(part, 60, True, {{}})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    rows = work / "rows" / "000-slow.jsonl"
    deadline = time.monotonic() + 60
    while not results.read_rows(rows):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    (attempt,) = Runner(work, [], ["gpu.py"]).attempts
    assert attempt["status"] == results.OVER
    assert "the whole call was ended" in attempt["reason"]
    helper = attempt["rows"][0]["helper"]
    os.kill(helper, 9)  # SIGKILL of the call cannot reach what its part has started


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": ')
    assert results.read_rows(path) == [{"a": 1}, {"b": 2}]


def test_the_list_names_every_part(tmp_path: Path):
    done = call("--list", site=blocker(()), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, each in PARTS.items():
        assert f"{name}: {each.line}" in done.stdout
    assert "limit 540 s, only when it is named" in done.stdout
    assert "inputs: cifar10, inception, taef2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parts", "train,speed", "--work", "w"], "--parts speed: parts are train, autoencoders"),
        (["--limit", "train=long", "--work", "w"], "--limit train=long: write PART=SECONDS"),
        ([], "give --work DIR"),
        (["--work", "w", "--take", "nowhere"], "nowhere: no pieces.json"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str):
    done = call(*arguments)
    assert done.returncode == 2
    assert told in done.stderr.strip().splitlines()[-1]


def test_parts_run_without_torch_and_are_not_run_twice(tmp_path: Path):
    """On a machine that has nothing but what the parts name; PyTorch's rows say what is missing."""
    packages = PARTS["sampling"].packages
    site = blocker(tuple(name for name in packages if name != "torch"))
    words = [
        "--work",
        tmp_path / "w",
        "--tiny",
        "--parts",
        "memory,sampling",
        "--out",
        tmp_path / "out",
    ]
    done = call(*words, site=site, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    memory, sampling = kept(tmp_path / "out")
    assert memory["status"] == sampling["status"] == results.DONE, (
        memory["reason"],
        sampling["reason"],
    )
    (row,) = memory["rows"]
    assert 0 < row["state_and_batch_gib"] < row["planned_gib"] < 0.1
    *ours, theirs = sampling["rows"]
    assert [row["cfg"] for row in ours] == [1.0, 4.0]
    assert all(row["images_per_second"] > 0 and row["sampler"] == "flowtrain" for row in ours)
    assert "No module named 'torch'" in theirs["remark"]
    done = call(*words, site=site, folder=tmp_path)
    assert "memory: done before" in done.stdout
    assert "sampling: done before" in done.stdout
    assert len(kept(tmp_path / "w")) == 2


def test_a_failed_part_is_the_exit_status_and_the_next_one_runs(tmp_path: Path):
    """Also: a wrong override is told before anything is read, as there are no images here."""
    words = ["--work", tmp_path, "--tiny", "--parts", "cifar,memory"]
    done = call(*words, "--set", "train.stepz=5")
    assert done.returncode == 1, done.stderr
    cifar, memory = kept(tmp_path)
    assert (cifar["status"], memory["status"]) == (results.FAILED, results.DONE)
    assert "unknown key train.stepz" in cifar["reason"]


def test_no_part_begins_without_time(tmp_path: Path):
    done = call("--work", tmp_path, "--tiny", "--parts", "memory", "--budget", 1)
    assert done.returncode == 0, done.stderr
    assert "memory: not begun" in done.stdout
    assert not results.read(tmp_path)


def lay_out(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    contents = {
        "first.bin": rng.bytes(700),
        "sub/second.bin": rng.bytes(1500),
        "third.bin": rng.bytes(1),
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


@pytest.mark.parametrize("order", [("1", "2", "3"), ("3", "1", "2")])
def test_files_travel_in_pieces(tmp_path: Path, order: tuple[str, ...]):
    source, pieces, work = tmp_path / "source", tmp_path / "pieces", tmp_path / "work"
    contents = lay_out(source)
    inputs.cut([source / name for name in contents], source, pieces, 1000)
    assert sorted(path.name for path in pieces.iterdir()) == ["1", "2", "3"]
    for folder in pieces.iterdir():
        sizes = [path.stat().st_size for path in folder.iterdir() if path.name != inputs.INDEX]
        assert sum(sizes) <= 1000
    assert inputs.find(work, "sub/second.bin") is None
    for name in order:
        inputs.take(pieces / name, work)
        inputs.take(pieces / name, work)  # once more changes nothing
    for name, content in contents.items():
        path = inputs.find(work, name)
        assert path is not None
        assert path.read_bytes() == content


def test_a_damaged_piece_is_refused(tmp_path: Path):
    source, pieces, work = tmp_path / "source", tmp_path / "pieces", tmp_path / "work"
    contents = lay_out(source)
    inputs.cut([source / name for name in contents], source, pieces, 1000)
    piece = pieces / "2" / "sub-second.bin.300"
    piece.write_bytes(bytes([piece.read_bytes()[0] ^ 1]) + piece.read_bytes()[1:])
    inputs.take(pieces / "1", work)
    inputs.take(pieces / "2", work)
    with pytest.raises(UserError, match=r"second.bin: its pieces are not those that were cut"):
        inputs.take(pieces / "3", work)
    assert inputs.find(work, "sub/second.bin") is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[:-9], "pieces.json: damaged"),
        (lambda text: "[]", "pieces.json: damaged"),
        (lambda text: text.replace('"total": 700', '"total": "x"'), "pieces.json: damaged"),
        (
            lambda text: text.replace('"name": "first.bin"', '"name": "../first.bin"'),
            "'../first.bin' leads out",
        ),
        (
            lambda text: text.replace('"name": "first.bin"', '"name": "/first.bin"'),
            "'/first.bin' leads out",
        ),
        (
            lambda text: text.replace('"first.bin.0"', '"../first.bin.0"'),
            "'../first.bin.0' leads out",
        ),
        (
            lambda text: text.replace('"first.bin.0"', '"other.bin.0"'),
            "other.bin.0 of pieces.json is missing",
        ),
    ],
)
def test_an_index_that_is_damaged_writes_nothing(
    tmp_path: Path, damage: Callable[[str], str], told: str
):
    source, pieces, work = tmp_path / "source", tmp_path / "pieces", tmp_path / "work"
    contents = lay_out(source)
    inputs.cut([source / name for name in contents], source, pieces, 1000)
    index = pieces / "1" / inputs.INDEX
    text = index.read_text()
    index.write_text(damage(text))
    assert index.read_text() != text
    with pytest.raises(UserError, match=re.escape(told)) as error:
        inputs.take(pieces / "1", work)
    assert "\n" not in str(error.value)
    assert not work.exists()


def test_a_tar_of_images_is_packed(tmp_path: Path):
    import tarfile

    members = {"b/1.jpg": b"second", "a/2.jpg": b"first", "b/0.jpg": b"another"}
    for name, content in members.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in members:
            archive.add(tmp_path / name, name)
    inputs.pack_images(tmp_path / "images.tar", tmp_path / "images.npz")
    files, labels, classes = inputs.read_images(tmp_path / "images.npz")
    assert [file.getvalue() for file in files] == [b"first", b"another", b"second"]
    assert labels.tolist() == [0, 1, 1]
    assert classes == ("a", "b")


def test_a_table_holds_the_columns_of_all_rows():
    attempt: dict[str, Any] = {
        "part": "p",
        "status": "done",
        "tiny": False,
        "command": "c",
        "begun": "b",
    }
    attempt |= {
        "seconds": 1.0,
        "limit": 2.0,
        "reason": "",
        "device": "d",
        "driver": "1.2",
        "versions": {"jax": "0"},
    }
    attempt |= {"commit": "abc", "rows": [{"a": 1.23456}, {"b": "x|y\nz", "a": None}]}
    table = results.table([attempt])
    assert "| a | b |\n| --- | --- |\n| 1.235 |  |\n|  | x/y z |" in table
    assert "d, driver 1.2; jax 0; commit abc" in table
