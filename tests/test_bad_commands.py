"""Bad commands, made from the types of all options: each is refused in one line, before anything is
written.
"""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from evaluation.option_types import Names, Numbers
from flowtrain.cli import main
from flowtrain.option_types import LocalPath
from flowtrain.plan import make_plan
from flowtrain.recipes import find_recipe
from flowtrain.state.folders import StepFolders
from schemas.recipes import load_recipe
from schemas.run import CHECKPOINTS_DIR, write_run
from schemas.statistics import FeatureStatistics, Moments, write_statistics
from tests.flowtrain.datasets import write_dataset
from tests.pipelines.sources.miniature import png

COMMANDS = 300
DIGITS = "9" * 5000
NO_NUMBER = ("", " ", "x", "1 2", "nan", "inf", "-inf", "0x", "1\n2", "1\0", DIGITS, f"-{DIGITS}")
NO_TEXT = ("", "a\0b", "a\nb")
NO_PATH = ("", " ", "s3://bucket/x", "gs://b", "a\0b", "x" * 5000)
# Of the options that are a size of something: more than any machine has room or time for.
ABSURD = (10**12, 10**15, 10**18, 2**63, 10**30)
# Options in which any number may be meant.
ANY_NUMBER = {"seed", "step", "replay", "process", "processes"}
# Arguments that would be right, but for what is put into their place; nothing is written with them.
RIGHT: Mapping[tuple[str, ...], Sequence[str]] = {
    ("preprocess",): "photos out --vae none --resolution 16 --dry-run".split(),
    ("data", "inspect"): ["data"],
    ("data", "verify"): ["data"],
    ("data", "diff"): ["data", "data"],
    ("data", "merge"): ["data", "data", "out"],
    ("train",): "data --workdir out --recipe debug --set train.batch_size=8 --dry-run".split(),
    ("sample",): "run out.png --dry-run".split(),
    ("eval",): "run --reference reference.npz --dry-run".split(),
    ("stats",): "photos out.npz --resolution 16 --dry-run".split(),
    ("report",): ["run", "--dry-run"],
    ("quickstart",): ["out", "--dry-run"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the right arguments name."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(png())
    (folder / "file").write_text("text")
    write_dataset(folder / "data", records=8)
    recipe = load_recipe(find_recipe("debug"), ["train.batch_size=8"])
    (folder / "run").mkdir()
    write_run(folder / "run", make_plan(folder / "data", recipe).run)
    with StepFolders(folder / "run" / CHECKPOINTS_DIR, "checkpoint") as checkpoints:
        checkpoints.write(1, {"params": {"w": np.zeros(1)}})
    moments = Moments.of(np.random.default_rng(0).normal(size=(80, 64)))
    write_statistics(folder / "reference.npz", FeatureStatistics.from_moments(moments, {}))
    return folder


def leaves(
    group: click.Group, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*above, name))
        else:
            yield (*above, name), command


def around(kind: click.IntRange | click.FloatRange, any_number: bool) -> Iterator[str]:
    """Numbers outside of a range."""
    if kind.min is not None:
        yield f"{kind.min - 1:g}"
        yield f"{-1e30 if isinstance(kind, click.FloatRange) else -(10**30)}"
    if kind.max is not None:
        yield f"{kind.max + 1}"
    if isinstance(kind, click.IntRange) and not any_number:
        yield from map(str, ABSURD)
        yield "1.5"


def bad_values(option: click.Parameter) -> Iterator[str]:
    kind = option.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        yield from NO_NUMBER
        yield from around(kind, option.name in ANY_NUMBER)
    elif isinstance(kind, Numbers):
        yield from (*NO_NUMBER, "1,,2", "-1", ",", "1;2")
    elif isinstance(kind, click.Choice):
        yield from (*NO_TEXT, "nonsense", "adm,none")
    elif isinstance(kind, LocalPath | click.Path):
        yield from NO_PATH
        yield from ("file/x", "/dev/null/x")
    elif isinstance(kind, Names):
        yield from (*NO_TEXT, "nonsense", ",")
    else:
        yield from NO_TEXT


# What a text means to a command tells which others are bad.
NONSENSE: dict[str | None, tuple[str, ...]] = {
    "source": ("missing", "tar:missing", "zip:file", "tfds:missing", "parquet:file", "embedded:x"),
    "data": ("missing", "file", "photos", "s3://"),
    "directory": ("missing", "file", "photos"),
    "first": ("missing", "file", "photos"),
    "parts": ("missing", "file", "photos"),
    "recipe": ("nonsense", "photos", "missing.toml", "file"),
    "validation": ("missing", "file", "photos"),
    "reference": ("missing", "file", "photos", "photos/a.png"),
    "sample workdir": ("file", "missing"),
    "report workdirs": ("file", "missing"),
    "eval workdir": ("missing",),
    "overrides": ("x", "train.steps", "train.stepps=1", f"train.steps={DIGITS}", "a.b=1",
                  "model.width=1000000000", f"train.steps={'[' * 3000}", "train.lr=nan",
                  "train.batch_size=1000000000000000"),
    "sweeps": ("x", "steps=", "steps=0", "nonsense=1", "cfg=nan", f"steps={10**15}",
               "num-samples=0", f"num-samples={10**15}", f"seed={DIGITS}"),
    "protocol": ("nonsense", "fid"),
    "labels": ("nonsense", "file", "missing.npz"),
    "class_name": ("nonsense", DIGITS),
    "weights": ("nonsense",),
    "coordinator": ("nonsense",),
    "beam_options": ("--runner=nonsense", "--nonsense=1", "--direct_num_workers=x", "nonsense"),
    "beam_args": ("--runner=nonsense", "--nonsense=1", "--direct_num_workers=x"),
}  # fmt: skip


def commands() -> list[list[str]]:
    """All bad commands, each with one bad value."""
    made: list[list[str]] = []
    for path, command in leaves(main):
        right = RIGHT[path]
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        for each in command.params:
            nonsense = [NONSENSE.get(name, ()) for name in (each.name, f"{path[-1]} {each.name}")]
            values = [*bad_values(each), *itertools.chain(*nonsense)]
            if isinstance(each, click.Argument):
                place = arguments.index(each)
                if each.name in ("beam_options", "beam_args"):
                    made += [[*path, *right, "--", value] for value in NONSENSE[each.name]]
                elif place < len(right):
                    made += [
                        [*path, *right[:place], value, *right[place + 1 :]] for value in values
                    ]
            elif isinstance(each, click.Option) and not each.is_flag:
                made += [[*path, *right, each.opts[-1], value] for value in values]
    return made


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def complaint(arguments: list[str], folder: Path, before: dict[str, str]) -> str | None:
    """What is wrong with how a bad command ended."""
    result = CliRunner().invoke(main, arguments, prog_name="flowtrain")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {str(result.exception)[:300]}"
    lines = result.stderr.splitlines()
    if result.exit_code != 2:
        return f"status {result.exit_code}"
    if (
        not lines
        or not lines[-1].startswith("Error: ")
        or any(not line.startswith("Warning: ") for line in lines[:-1])
    ):
        return f"said {result.stderr[:300]!r}"
    return None if state(folder) == before else "wrote something"


def test_the_right_arguments_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert {path for path, _ in leaves(main)} == RIGHT.keys()
    for path, right in RIGHT.items():
        if path not in (("data", "merge"), ("data", "verify")):  # they look at every record
            result = CliRunner().invoke(main, [*path, *right])
            assert result.exit_code == 0, (path, result.output, result.exception)


def test_bad_commands_are_refused_in_one_line_and_write_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    made = commands()
    number = int(os.environ.get("BAD_COMMANDS", COMMANDS))
    chosen = random.Random(0).sample(made, min(number, len(made)))
    before = state(folder)
    found = []
    for arguments in chosen:
        told = complaint(arguments, folder, before)
        if told is not None:
            found.append(f"{[each[:40] for each in arguments]}: {told}")
    assert not found, "\n".join([f"{len(found)} of {len(chosen)}", *found])
