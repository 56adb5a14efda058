"""What the trainer asks of other packages, where one of theirs is not installed."""

import inspect
import subprocess
import sys

import pytest

from evaluation.preview.preview import make_preview
from flowtrain import elsewhere
from pipelines.dataset import anywhere, download

WITHOUT = """
import sys
from flowtrain import elsewhere
absent, ask = sys.argv[1:]
sys.modules[absent] = None
try:
    eval(ask)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("absent", "ask", "told"),
    [
        (
            "array_record",
            "elsewhere.open_remote_dataset('s3://bucket/data')",
            "UserError a dataset in an object store needs the package array_record.python, which "
            "is not installed; install it, or copy the dataset to a local disk and train on the "
            "copy",
        ),
        (
            "evaluation.preview.sheet",
            "elsewhere.preview_maker()",
            "UserError previews need the package evaluation.preview.sheet, which is not "
            "installed; install it, or set preview.every=0",
        ),
    ],
)
def test_a_package_that_is_missing_is_one_line(absent: str, ask: str, told: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, ask], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == told, result.stderr


def test_the_types_here_are_those_there() -> None:
    """The names are strings, so that no type checker compares the two sides."""
    pairs = [
        (elsewhere.open_remote_dataset, anywhere.open_dataset),
        (elsewhere.staged_bytes, download.staged_bytes),
        (elsewhere.stage, download.stage),
        (elsewhere.PreviewMaker.__call__, make_preview),
    ]
    for here, there in pairs:
        wanted = [
            (each.name, each.kind)
            for each in inspect.signature(here).parameters.values()
            if each.name != "self"
        ]
        given = [(each.name, each.kind) for each in inspect.signature(there).parameters.values()]
        assert [kind for _, kind in wanted] == [kind for _, kind in given]
    assert elsewhere.preview_maker() is make_preview
