"""`--replay` prints what really made a step."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flowtrain.cli import main
from flowtrain.records.reader import LatentReader
from flowtrain.replay import replay
from schemas.errors import UserError
from tests.flowtrain.datasets import CLASSES, record_tensors, write_dataset
from tests.flowtrain.runs import debug_plan, lines, run_debug


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, flips=True)
    return path


def test_times_of_a_step_are_those_of_its_losses(latents: Path, tmp_path: Path):
    """The tenths of t that had losses in step 7, as logged, are those that the replay tells."""
    run_debug(latents, tmp_path, "train.log_every=1")
    logged = next(line for line in lines(tmp_path) if line["step"] == 7)
    records = list(replay(debug_plan(latents), tmp_path, 7))
    tenths = {f"loss_t{np.floor(record['t'] * 10) / 10:.1f}" for record in records}
    assert tenths == {name for name in logged if name.startswith("loss_t0")}


def test_records_are_named_rightly(latents: Path, tmp_path: Path):
    plan = debug_plan(latents)
    records = list(replay(plan, tmp_path, 3))
    assert [record["row"] for record in records] == list(range(8))
    for record in records:
        assert record["key"] == f"item-{record['index']:04d}"
        assert record["name"] == CLASSES[record["label"]] == CLASSES[record["index"] % 3]
        assert record["epoch"] == (16 + record["row"]) // 20
    mirrored = [record for record in records if record["mirrored"]]
    assert mirrored
    assert len(mirrored) < 8
    assert isinstance(plan.reader, LatentReader)
    stored = plan.reader.read([mirrored[0]["index"]], mirrored=True)[0]
    expected = record_tensors(mirrored[0]["index"], (4, 4, 4), mirrored=True)
    np.testing.assert_array_equal(stored.tensors["mean"], expected["mean"])
    dropped = [
        record["dropped"] for step in range(1, 21) for record in replay(plan, tmp_path, step)
    ]
    assert 0 < sum(dropped) < 40  # of 160, one in ten


def test_the_command_prints_a_table_or_json(latents: Path, tmp_path: Path):
    words = [
        "train",
        str(latents),
        "--workdir",
        str(tmp_path / "run"),
        "--recipe",
        "debug",
        "--replay",
        "3",
    ]
    table = CliRunner().invoke(main, words)
    assert table.exit_code == 0, table.output
    assert (
        table.output.splitlines()[0].split()
        == "row key index epoch mirrored label name dropped t".split()
    )
    printed = CliRunner().invoke(main, [*words, "--json"])
    assert [json.loads(line) for line in printed.output.splitlines()] == list(
        replay(debug_plan(latents), tmp_path / "run", 3)
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--replay 21: the run has steps 1 to 20"):
        next(replay(debug_plan(latents), tmp_path, 21))
