"""Two processes of one run: the same records and losses as one, and a checkpoint that either kind
goes on from.
"""

import socket
from pathlib import Path

import numpy as np
import pytest

from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import command, debug_plan, finish, lines, run_debug, saved, start


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=20, shards=3, flips=True)
    return path


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _run_two(latents: Path, workdir: Path, *overrides: str, fsdp: int = 1) -> None:
    where = f"127.0.0.1:{_free_port()}"
    words = [
        command(
            latents,
            workdir,
            *f"--coordinator {where} --processes 2 --process {i} --fsdp {fsdp}".split(),
            overrides=overrides,
        )
        for i in (0, 1)
    ]
    for process in [start(one) for one in words]:
        finish(process)


def test_two_processes_compute_what_one_does(latents: Path, tmp_path: Path):
    ten = ["train.log_every=1", "train.steps=10", "train.holdout=3", "train.validate_every=5"]
    all_of_it = [*ten[:1], "train.steps=20", *ten[2:]]
    run_debug(latents, tmp_path / "one", *all_of_it)
    _run_two(latents, tmp_path / "two", *ten, fsdp=2)
    run_debug(latents, tmp_path / "two", *all_of_it)  # goes on alone
    alone, joined = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in joined] == list(range(1, 21))
    for name in ("loss", "grad_norm", "param_norm"):
        expected = [line[name] for line in alone]
        np.testing.assert_allclose(
            [line[name] for line in joined], expected, rtol=2e-5, err_msg=name
        )
    validation = [
        [
            line
            for line in (tmp_path / which / "metrics.jsonl").read_text().splitlines()
            if "val_loss" in line
        ]
        for which in ("one", "two")
    ]
    assert len(validation[0]) == len(validation[1]) == 4
    plan = debug_plan(latents, *all_of_it)
    one, two = (saved(plan, tmp_path / which, 20)[1:] for which in ("one", "two"))
    assert one == two
